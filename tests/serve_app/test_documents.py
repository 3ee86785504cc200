"""The documents of a bundle over HTTP: only its own, only to who may ask, and under a policy that
keeps a report's script from whatever the server's page knows.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from cluster.environment import free_port
from models.bundle import Bundle, open_bundle
from serve_app.asgi import build_asgi
from serve_app.config import ServeOptions
from serve_app.documents import document_names
from serve_app.keys import INFER, Keys, new_key
from serve_app.model import ServedModel, open_served
from serve_app.openapi.model import model_document
from tests.bundles import tiny_bundle
from tests.conftest import S3Server
from tests.serve_app.conftest import ROOT, refused
from tests.serve_app.documents import Document

DOCUMENTS = {
    "model_card.md": b"# caps",
    "report.html": b"<!doctype html><script>1</script>",
    "confusion.png": b"\x89PNG",
    "notes.txt": b"not for everybody",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    """A model whose bundle has documents."""
    folder = tmp_path_factory.mktemp("documents")
    model = open_served(ServeOptions(bundle=tiny_bundle(folder, documents=DOCUMENTS), threads=1))
    yield model
    model.close()


@pytest.fixture
def client(model: ServedModel) -> Iterator[TestClient]:
    with TestClient(build_asgi(model), base_url=f"http://test{ROOT}", root_path=ROOT) as client:
        yield client


def test_the_report_stands_first_and_what_is_no_document_is_not_listed(model: ServedModel) -> None:
    assert document_names(model.manifest) == ["report.html", "model_card.md", "confusion.png"]


def test_documents_are_answered_as_they_lie_in_the_bundle(client: TestClient) -> None:
    listed = client.get("/config").json()["sightline"]["documents"]
    for name in listed:
        answer = client.get(f"/documents/{name}")
        assert answer.status_code == 200
        assert answer.content == DOCUMENTS[name]
        assert client.get(f"/versions/1/documents/{name}").content == DOCUMENTS[name]
        tag = answer.headers["etag"]
        again = client.get(f"/documents/{name}", headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")
    # A card is text: Markdown that somebody else wrote is not read as a page.
    assert client.get("/documents/model_card.md").headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("name", ["notes.txt", "model.onnx", "manifest.json", "..%2fmanifest.json"])
def test_nothing_else_of_a_bundle_is_answered(client: TestClient, name: str) -> None:
    refused(client.get(f"/documents/{name}"), 404, "not_found")


def test_a_report_runs_in_an_origin_of_its_own_and_can_ask_nobody(client: TestClient) -> None:
    headers = client.get("/documents/report.html").headers
    rules = [rule.strip() for rule in headers["content-security-policy"].split(";")]
    assert "sandbox allow-scripts" in rules  # without allow-same-origin
    assert "default-src 'none'" in rules
    assert not any(rule.startswith("connect-src") for rule in rules)
    assert headers["x-content-type-options"] == "nosniff"


def test_where_keys_are_asked_for_documents_need_one(model: ServedModel) -> None:
    key, row = new_key("line-4", [INFER])
    with TestClient(
        build_asgi(model, Keys(row)), base_url=f"http://test{ROOT}", root_path=ROOT
    ) as client:
        refused(client.get("/documents/report.html"), 401, "unauthenticated")
        bearer = {"Authorization": f"Bearer {key}"}
        assert client.get("/documents/report.html", headers=bearer).status_code == 200


def test_a_document_that_was_tampered_with_is_not_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    uri = tiny_bundle(tmp_path / "models", documents={"report.html": b"true"})
    model = open_served(ServeOptions(bundle=uri, threads=1))
    (Path(open_bundle(uri).uri) / "report.html").write_bytes(b"lies")
    with TestClient(build_asgi(model), base_url=f"http://test{ROOT}", root_path=ROOT) as client:
        answer = client.get("/documents/report.html")
    assert answer.status_code == 500
    assert b"lies" not in answer.content
    model.close()


def test_the_documents_stand_among_the_described_calls(model: ServedModel) -> None:
    paths = model_document(model, ROOT)["paths"]
    assert {path for path in paths if "documents" in path} == {
        "/documents/report.html",
        "/documents/model_card.md",
        "/documents/confusion.png",
    }


def test_a_store_that_hangs_is_given_up_and_keeps_no_thread_from_scoring(
    client: TestClient, model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def hang(name: str) -> Path:
        asked.append(threading.current_thread().name)
        time.sleep(1)
        raise FileNotFoundError

    monkeypatch.setattr("serve_app.documents.STORE_SECONDS", 0.1)
    monkeypatch.setattr(Bundle, "path", lambda _, name: hang(name))
    answer = client.get("/documents/confusion.png")
    refusal = refused(answer, 503, "deadline")
    assert answer.headers["retry-after"] == "1"
    assert "the bundle store has not answered for 0.1 s" in refusal
    assert asked[0].startswith("documents"), "not of those that everything else has"


def test_a_document_that_cannot_be_fetched_now_is_to_be_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("SIGHTLINE_CACHE", str(cache))
    uri = tiny_bundle(tmp_path / "models", documents=DOCUMENTS)
    model = open_served(ServeOptions(bundle=uri, threads=1, retry_after_seconds=2.5))
    shutil.rmtree(cache)
    cache.write_bytes(b"a file where the folder was")
    check_unavailable(model)
    cache.unlink()
    with TestClient(build_asgi(model), base_url=f"http://test{ROOT}", root_path=ROOT) as client:
        assert client.get("/documents/model_card.md").content == DOCUMENTS["model_card.md"]
    model.close()


def test_a_bucket_that_refuses_connections_is_to_be_asked_again(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    uri = tiny_bundle(f"{s3_server.make_bucket('documents')}/models", documents=DOCUMENTS)
    model = open_served(ServeOptions(bundle=uri, threads=1, retry_after_seconds=2.5))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    check_unavailable(model)
    model.close()


def check_unavailable(model: ServedModel) -> None:
    """Assert that a document is not to be had now, and that the client is told when to ask."""
    with TestClient(build_asgi(model), base_url=f"http://test{ROOT}", root_path=ROOT) as client:
        answer = client.get("/documents/model_card.md")
    assert "the bundle store does not answer" in refused(answer, 503, "bundle_store")
    assert answer.headers["retry-after"] == "3"
    Document(model_document(model, ROOT)).check("GET", "/documents/model_card.md", answer)
