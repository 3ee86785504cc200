"""The OpenAPI documents against what is really answered: every call, every kind, good and bad."""

from __future__ import annotations

import base64
import gzip
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import validate
from starlette.testclient import TestClient

from models.bundle import open_bundle
from models.kinds import KINDS
from models.predictor import open_predictor
from serve_app.asgi import build_asgi
from serve_app.config import Limits, ServeOptions
from serve_app.keys import ADMIN, INFER, Keys, new_key
from serve_app.model import ServedModel, open_served
from serve_app.openapi.catalog import catalog_document
from serve_app.openapi.model import model_document
from serve_app.routing import Api
from tests.bundles import tiny_bundle
from tests.serve_app.conftest import ROOT, encode, refused
from tests.serve_app.documents import Document

SIZE = 32
CLASSES = ("good", "dented", "torn")
OFFICE, OFFICE_ROW = new_key("office", [ADMIN])
LINE, LINE_ROW = new_key("line-4", [INFER])
AS_OFFICE = {"Authorization": f"Bearer {OFFICE}"}
JSON = {"Content-Type": "application/json"}
BYTES = {"Accept": "application/octet-stream"}
LENGTH = "Inference-Header-Content-Length"
VIEWS = "/views/"  # the protocol's calls once more, for clients that want one input
IMAGE = encode(kind="PNG")
TEXT = base64.b64encode(IMAGE).decode()


@dataclass(frozen=True)
class Served:
    """A model, its application, its document, and a client with the admin key."""

    model: ServedModel
    api: Api
    document: Document
    client: TestClient


def serve_options(folder: Path, kind: str, **more: Any) -> ServeOptions:
    """Return options with small limits, so that tests reach them."""
    limits = Limits(
        max_body_bytes=100_000, max_image_bytes=50_000, max_pixels=200_000, max_images=3
    )
    labels = {"label_store": str(folder / "labels")} if KINDS[kind].has_label_map else {}
    bundle = tiny_bundle(folder, kind=kind, classes=CLASSES, size=SIZE)
    return ServeOptions(bundle=bundle, limits=limits, threads=1, **labels, **more)


@pytest.fixture(scope="module", params=sorted(KINDS))
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A model of each kind."""
    model = open_served(serve_options(tmp_path_factory.mktemp("models"), request.param))
    api = build_asgi(model, Keys(OFFICE_ROW))
    url = f"http://test{ROOT}"
    with TestClient(api, base_url=url, root_path=ROOT, headers=AS_OFFICE) as client:
        answer = client.get("/openapi.json")
        assert answer.status_code == 200
        yield Served(model, api, Document(answer.json()), client)
    model.close()


def all_documents(served: Served) -> list[Document]:
    """Return the documents that a client of the model may read."""
    return [served.document, Document(catalog_document())]


# --- the documents themselves --------------------------------------------------------------------


@pytest.mark.slow
def test_the_documents_are_sound_openapi(served: Served) -> None:
    for document in all_documents(served):
        validate(document.value)
        assert document.value["openapi"] == "3.1.0"


def test_every_route_stands_in_the_document_and_nothing_else(served: Served) -> None:
    routes = {
        (method, path.replace("*", "{number}") or "/")
        for path, methods in served.api.routes.items()
        if not path.startswith(VIEWS)
        for method in methods
    }
    assert routes == {(method, path) for method, path, _ in served.document.operations()}


def test_the_document_is_of_this_model_and_no_other(served: Served) -> None:
    document, kind = served.document.value, served.model.kind
    text = json.dumps(document)
    assert document["servers"] == [{"url": ROOT}, {"url": f"{ROOT}/versions/1"}]
    assert ("/classify" in document["paths"]) is ("classify" in kind.calls)
    assert ("/labels" in document["paths"]) is kind.has_label_map
    assert ("torn" in text) is kind.has_classes
    assert ("min_revision" in text) is kind.has_label_map


def test_the_limits_of_the_model_stand_in_the_document(served: Served) -> None:
    schemas = served.document.value["components"]["schemas"]
    assert schemas["SeveralImages"]["properties"]["images"]["maxItems"] == 3
    form = served.document.find("POST", "/embed")["requestBody"]["content"]["multipart/form-data"]
    assert form["schema"]["properties"]["image"]["maxItems"] == 3
    assert schemas["Embedding"]["properties"]["embedding"]["maxItems"] == 8
    assert "100,000 bytes" in served.document.value["info"]["description"]


def test_every_example_of_an_answer_is_as_its_schema_says(served: Served) -> None:
    num_examples = 0
    for document in all_documents(served):
        for method, path, operation in document.operations():
            for status, promised in operation["responses"].items():
                for content in promised.get("content", {}).values():
                    for example in examples_of(content):
                        wrong = document.errors(content["schema"], example)
                        assert not wrong, f"{method} {path} {status}: {wrong}"
                        num_examples += 1
    assert num_examples > 50


def test_every_example_of_a_scoring_request_is_answered(served: Served) -> None:
    for call in ("/infer", *(f"/{name}" for name in sorted(served.model.kind.calls))):
        content = served.document.find("POST", call)["requestBody"]["content"]["application/json"]
        examples = examples_of(content)
        assert examples
        for example in examples:
            assert not served.document.errors(content["schema"], example)
            answer = served.client.post(call, json=example)
            assert answer.status_code == 200, answer.text
            served.document.check("POST", call, answer)


def test_every_call_has_a_command_that_can_be_copied(served: Served) -> None:
    for document in all_documents(served):
        for method, path, operation in document.operations():
            (sample,) = operation["x-codeSamples"]
            assert sample["source"].startswith("curl "), (method, path)
            assert "http://localhost:8000/" in sample["source"]


def examples_of(content: dict[str, Any]) -> list[Any]:
    """Return the examples of a body, whichever way they are given."""
    named = [example["value"] for example in content.get("examples", {}).values()]
    return named + ([content["example"]] if "example" in content else [])


# --- what is answered ----------------------------------------------------------------------------


def several(*images: str) -> dict[str, Any]:
    """Return a request of several images."""
    return {"json": {"images": list(images)}}


def tensor(name: str = "image", **more: Any) -> dict[str, Any]:
    """Return an infer request of one image."""
    given = {"name": name, "datatype": "BYTES", "shape": [1], "data": [TEXT], **more}
    return {"json": {"inputs": [given]}}


def binary(*asked: dict[str, Any]) -> dict[str, Any]:
    """Return an infer request whose image stands behind the JSON."""
    raw = struct.pack("<I", len(IMAGE)) + IMAGE
    given = {"name": "image", "datatype": "BYTES", "shape": [1, 1]}
    head = {"inputs": [{**given, "parameters": {"binary_data_size": len(raw)}}]}
    text = json.dumps({**head, "outputs": list(asked)} if asked else head).encode()
    return {"content": text + raw, "headers": {LENGTH: str(len(text))}}


UPLOADS: list[dict[str, Any]] = [
    {"content": IMAGE},
    {"content": encode()},
    {"content": b""},
    {"content": b"hello"},
    {"content": IMAGE[:60]},
    {"content": encode(size=(600, 600), kind="GIF")},
    {"content": bytes(60_000)},
    {"content": bytes(200_000)},
    {"content": b"BM" + bytes(60_000)},
    {"content": IMAGE, "headers": {"Content-Encoding": "br"}},
    {"content": IMAGE, "headers": {"Content-Length": "many"}},
    {"content": IMAGE, "headers": {"Content-Type": "multipart/form-data"}},
    {"content": b"{", "headers": JSON},
    {"content": b"[]", "headers": JSON},
    {"json": {"image": TEXT}},
    {"json": {"image": "data:image/png;base64," + TEXT}},
    {"json": {"image": "%"}},
    {"json": {"image": 5}},
    several(TEXT),
    several(TEXT, TEXT, "aGVsbG8="),
    several("%", "", "data:,"),
    several(),
    several(*[TEXT] * 4),
    {"files": [("f", ("a.png", IMAGE)), ("f", ("b.png", b"x")), ("f", ("", IMAGE))]},
    {"files": [("f", ("a.png", IMAGE))] * 4},
    {"data": {"f": "text"}, "files": {"g": ("a.png", IMAGE)}},
    {"content": IMAGE, "params": {"nothing": 1}},
]
INFERS: list[dict[str, Any]] = [
    tensor(),
    tensor(shape=[1, 1], data=[[TEXT]]),
    tensor(data=["%"]),
    tensor(data=["aGVsbG8="]),
    tensor(shape=[2], data=[TEXT, TEXT]),
    tensor(shape=[9], data=[TEXT] * 9),
    tensor(shape=[0], data=[]),
    tensor("pixels", datatype="UINT8", shape=[1, SIZE, SIZE, 3], data=[7] * SIZE * SIZE * 3),
    tensor("pixels", datatype="UINT8", shape=[1, 2], data=[7, 7]),
    tensor("what"),
    {"json": {**tensor()["json"], "id": "42"}},
    {"json": {**tensor()["json"], "outputs": [{"name": "embedding"}]}},
    {"json": {**tensor()["json"], "outputs": [{"name": "nothing"}]}},
    {"json": {**tensor()["json"], "parameters": {"min_revision": 99}}},
    {"json": {**tensor()["json"], "parameters": {"min_revision": -1}}},
    tensor("tensor", datatype="FP32", shape=[1, 3, SIZE, SIZE], data=[7.5] * SIZE * SIZE * 3),
    {"content": gzip.compress(b"{}"), "headers": {"Content-Encoding": "gzip"}},
    {"content": gzip.compress(b"{}")[:-3], "headers": {"Content-Encoding": "gzip"}},
    {"content": gzip.compress(bytes(200_000)), "headers": {"Content-Encoding": "gzip"}},
    {"json": []},
    {"content": b"{"},
    {"content": IMAGE, "headers": {LENGTH: "0"}},
    {"content": b"hello", "headers": {LENGTH: "0"}},
    {"content": b"{}", "headers": {LENGTH: "-1"}},
    {"content": bytes(200_000)},
    binary(),
    binary({"name": "embedding", "parameters": {"binary_data": True}}),
]
OF_CLASSES: list[dict[str, Any]] = [
    {"json": {**tensor()["json"], "outputs": [{"name": "label"}, {"name": "probabilities"}]}},
    binary({"name": "probabilities", "parameters": {"classification": 2}}),
    binary({"name": "label", "parameters": {"binary_data": True}}),
]
QUERIES = (
    {"top_k": 1},
    {"scores": "all"},
    {"scores": "none"},
    {"scores": "most"},
    {"top_k": 0},
    {"min_revision": 0},
    {"min_revision": 9},
    {"top_k": ["1", "2"]},
)


def test_what_is_answered_to_images_is_as_promised(served: Served) -> None:
    seen = set()
    for call in sorted(served.model.kind.calls):
        for upload in UPLOADS:
            answer = served.client.post(f"/{call}", **upload)
            served.document.check("POST", f"/{call}", answer)
            seen.add(answer.status_code)
    assert seen == {200, 400, 413, 415, 422}


def test_vectors_in_bytes_are_as_promised(served: Served) -> None:
    uploads: list[dict[str, Any]] = [
        {"content": IMAGE},
        several(TEXT, TEXT),
        several(TEXT, "aGVsbG8="),
    ]
    for upload in uploads:
        answer = served.client.post("/embed", headers=BYTES, **upload)
        served.document.check("POST", "/embed", answer)
    assert answer.status_code == 415


def test_what_is_answered_to_queries_is_as_promised(served: Served) -> None:
    if "classify" not in served.model.kind.calls:
        pytest.skip("this kind has no call that takes a query")
    statuses = []
    for query in QUERIES:
        answer = served.client.post("/classify", params=query, content=IMAGE)
        served.document.check("POST", "/classify", answer)
        statuses.append(answer.status_code)
    late = 409 if served.model.kind.has_label_map else 400
    assert statuses == [200, 200, 200, 400, 400, 200, late, 400]


def test_what_is_answered_to_tensors_is_as_promised(served: Served) -> None:
    seen = set()
    extra = OF_CLASSES if served.model.kind.has_classes else []
    for given in (*INFERS, *extra):
        answer = served.client.post("/infer", **given)
        served.document.check("POST", "/infer", answer)
        seen.add((answer.status_code, answer.headers["content-type"].partition("/")[2]))
    assert {(200, "json"), (200, "octet-stream"), (400, "json"), (413, "json")} <= seen
    assert {(415, "json")} <= seen


def test_what_a_model_tells_of_itself_is_as_promised(served: Served) -> None:
    for path in ("", "/ready", "/config", "/stats", "/openapi.json"):
        answer = served.client.get(path)
        assert answer.status_code == 200
        served.document.check("GET", path, answer)
        served.document.check("GET", path, served.client.get(f"/versions/1{path}"))
    metadata = served.client.get("").json()
    (content,) = served.document.find("GET", "/")["responses"]["200"]["content"].values()
    assert content["example"] == metadata


EDIT = {"op": "rename", "label": "torn", "name": "ripped"}
LABEL_CALLS: list[tuple[int, str, str, dict[str, Any]]] = [
    (200, "GET", "/labels", {}),
    (400, "GET", "/labels", {"params": {"x": 1}}),
    (200, "PUT", "/labels", {"params": {"dry_run": "true"}, "json": {"edits": [EDIT]}}),
    (200, "PUT", "/labels", {"json": {"edits": [EDIT], "base": 0, "request_key": "k"}}),
    (200, "PUT", "/labels", {"json": {"edits": [EDIT], "base": 0, "request_key": "k"}}),
    (409, "PUT", "/labels", {"json": {"edits": [{**EDIT, "name": "x"}], "request_key": "k"}}),
    (412, "PUT", "/labels", {"json": {"edits": [EDIT], "base": 0}}),
    (400, "PUT", "/labels", {"json": {"edits": [{**EDIT, "label": "tron"}]}}),
    (400, "PUT", "/labels", {"json": {"edits": []}}),
    (400, "PUT", "/labels", {"content": b"{"}),
    (400, "PUT", "/labels", {"json": {"map": {}, "base": 1}}),
    (400, "PUT", "/labels", {"params": {"dry_run": "perhaps"}, "json": {"edits": [EDIT]}}),
    (413, "PUT", "/labels", {"content": bytes(5 << 20)}),
    (200, "POST", "/labels/rollback", {"json": {"revision": 0}}),
    (404, "POST", "/labels/rollback", {"json": {"revision": 99}}),
    (400, "POST", "/labels/rollback", {"json": {}}),
    (200, "GET", "/labels/diff", {"params": {"since": 0, "to": 1}}),
    (200, "GET", "/labels/diff", {}),
    (404, "GET", "/labels/diff", {"params": {"since": 50}}),
    (400, "GET", "/labels/diff", {"params": {"since": "x"}}),
    (200, "GET", "/labels/revisions", {"params": {"limit": 2}}),
    (400, "GET", "/labels/revisions", {"params": {"limit": 0}}),
    (200, "GET", "/labels/revisions/0", {}),
    (200, "GET", "/labels/revisions/2", {}),
    (404, "GET", "/labels/revisions/77", {}),
    (400, "GET", "/labels/revisions/x", {}),
]


def test_what_the_label_calls_answer_is_as_promised(served: Served) -> None:
    if not served.model.kind.has_label_map:
        assert served.client.get("/labels").status_code == 404
        return
    for status, method, path, given in LABEL_CALLS:
        answer = served.client.request(method, path, **given)
        assert answer.status_code == status, (method, path, given, answer.text)
        served.document.check(method, path, answer)
    whole = served.client.get("/labels").json()
    body = {"map": whole["map"] | {"unknown": "nothing"}, "base": whole["revision"]}
    answer = served.client.put("/labels", json=body)
    assert answer.status_code == 200, answer.text
    served.document.check("PUT", "/labels", answer)


def test_who_has_no_key_is_answered_as_promised(served: Served) -> None:
    api = build_asgi(served.model, Keys(f"{OFFICE_ROW};{LINE_ROW}"))
    with TestClient(api, base_url=f"http://test{ROOT}", root_path=ROOT) as client:
        for method, path, operation in served.document.operations():
            asked = path.replace("{number}", "0").rstrip("/")
            bare = client.request(method, asked)
            served.document.check(method, asked, bare)
            assert (bare.status_code == 401) is bool(operation.get("security")), asked
            line = client.request(method, asked, headers={"X-API-Key": LINE})
            served.document.check(method, asked, line)
            needs_admin = {} not in operation.get("security", [{}])
            assert (line.status_code == 403) is needs_admin, asked


def test_a_model_that_is_closed_says_so_as_promised(tmp_path: Path) -> None:
    options = serve_options(tmp_path, "embedding")
    predictor = open_predictor(open_bundle(options.bundle), options.engine_options)
    model = ServedModel(predictor, options)
    document = Document(model_document(model, ROOT))
    model.close()
    with TestClient(build_asgi(model), base_url=f"http://test{ROOT}", root_path=ROOT) as client:
        answer = client.get("/ready")
    refused(answer, 503, "closed")
    document.check("GET", "/ready", answer)


def test_a_full_model_says_so_as_promised(tmp_path: Path) -> None:
    options = serve_options(tmp_path, "generic", max_requests=1)
    model = open_served(options)
    document = Document(model_document(model, ROOT))
    with (
        TestClient(build_asgi(model), base_url=f"http://test{ROOT}", root_path=ROOT) as client,
        model.gate.admitted(),
    ):
        for call in ("/classify", "/embed", "/infer"):
            answer = client.post(call, content=IMAGE)
            refused(answer, 429, "queue_full")
            document.check("POST", call, answer)
            assert answer.headers["retry-after"] == "1"
    model.close()


def test_the_document_can_be_turned_off(tmp_path: Path) -> None:
    model = open_served(serve_options(tmp_path, "embedding", docs=False))
    with TestClient(build_asgi(model), base_url=f"http://test{ROOT}", root_path=ROOT) as client:
        refused(client.get("/openapi.json"), 404, "not_found")
    model.close()


def test_a_model_beside_another_version_tells_its_own_place(served: Served) -> None:
    place = f"{ROOT}/versions/1"
    with TestClient(served.api, base_url=f"http://test{place}", root_path=place) as client:
        document = client.get("/openapi.json").json()
    assert document["servers"][0] == {"url": place}
    assert httpx.URL(document["servers"][0]["url"]).path == place
