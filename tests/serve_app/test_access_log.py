"""The access log: which requests stand in it, what it says of them, and what it never says."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import MemoryHandler, RotatingFileHandler
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve_app.access_log import MAX_REFUSALS, AccessLog, beside, to_file, to_stderr
from serve_app.asgi import build_asgi
from serve_app.config import ServeOptions
from serve_app.keys import INFER, Keys, new_key
from serve_app.model import ServedModel, open_served
from serve_app.routing import Api
from serve_app.watch import Watch
from tests.bundles import tiny_bundle
from tests.serve_app.conftest import ROOT, encode
from tests.serve_app.grpc_client import GrpcClient, image_request
from tests.serve_app.grpc_server import serve

LINE, LINE_ROW = new_key("line-4", [INFER])
FIELDS = {
    *("time", "request_id", "protocol", "call", "method", "path", "status", "code", "key"),
    *("bytes_in", "bytes_out", "images", "queue_ms", "decode_ms", "infer_ms", "total_ms"),
    *("model", "version", "engine", "precision"),
}
Lines = list[dict[str, Any]]


@contextmanager
def logging_to(
    lines: list[str], watch: Watch, sample: float = 1.0, about: Mapping[str, object] | None = None
) -> Iterator[None]:
    """Log to a list, which is whole after the `with`."""
    watch.access_log = AccessLog(lambda text: lines.extend(text.splitlines()), sample, about or {})
    yield
    watch.access_log.close()
    watch.access_log = None


@pytest.fixture
def logged(options: ServeOptions) -> Iterator[Callable[..., Lines]]:
    """Run something with a client of a model, and return the lines that came of it."""
    model = open_served(options)
    app = build_asgi(model, Keys(LINE_ROW))
    headers = {"X-API-Key": LINE}

    def run(ask: Callable[[TestClient], Any], sample: float = 1.0) -> Lines:
        lines: list[str] = []
        with (
            TestClient(
                app, base_url=f"http://test{ROOT}", root_path=ROOT, headers=headers
            ) as client,
            logging_to(lines, model.watch, sample, model.facts),
        ):
            ask(client)
        return [json.loads(line) for line in lines]

    yield run
    model.close()


def test_a_line_says_what_became_of_a_request(logged: Callable[..., Lines]) -> None:
    def ask(client: TestClient) -> None:
        client.post("/versions/1/classify", content=encode(), headers={"X-Request-Id": "a"})
        client.post("/classify", files=[("f", encode(1)), ("f", encode(2)), ("f", b"no image")])
        client.post("/classify", content=b"no image")
        client.get("/nothing")

    single, several, refused, lost = logged(ask)
    assert set(single) == FIELDS
    moment = datetime.fromisoformat(single["time"].replace("Z", "+00:00"))
    assert abs((datetime.now(UTC) - moment).total_seconds()) < 60
    facts = {"model": "tiny", "version": 1, "engine": "openvino", "key": "line-4"}
    call = {"call": "classify", "protocol": "http", "method": "POST", "path": f"{ROOT}/classify"}
    for line in (single, several, refused):
        assert facts.items() | call.items() <= line.items()
    assert (single["status"], single["code"], single["request_id"]) == (200, None, "a")
    assert (single["images"], single["bytes_in"]) == (1, len(encode()))
    assert single["bytes_out"] > 50
    parts = [single[f"{part}_ms"] for part in ("queue", "decode", "infer")]
    assert min(parts) > 0
    assert sum(parts) < single["total_ms"] < 10_000
    assert (several["status"], several["images"]) == (200, 2)
    assert (refused["status"], refused["code"], refused["images"]) == (415, "image_type", 0)
    assert (lost["status"], lost["code"], lost["path"]) == (404, "not_found", None)


def test_nothing_of_what_was_sent_stands_in_it(logged: Callable[..., Lines]) -> None:
    secret, text = "Secret7", base64.b64encode(encode()).decode()

    def ask(client: TestClient) -> None:
        part = (f"{secret}.jpg", encode(), f"image/{secret}")
        client.post(f"/classify?scores={secret}", content=encode())
        client.post("/classify", files=[(secret, part)])
        client.post("/classify", files=[(secret, (f"{secret}.jpg", b"no"))])
        client.post("/classify", json={"image": text, secret: secret})
        client.post("/infer", json={"id": secret, "inputs": [{"name": secret}]})
        client.post(f"/{secret}/{secret}", content=secret)
        client.request(secret, "/classify")
        client.get(f"/versions/{secret}")
        client.get("/ready", headers={"X-API-Key": secret, "Cookie": secret, "Referer": secret})
        client.get("/ready", headers={"X-Request-Id": f"{secret} {secret}"})

    lines = logged(ask)
    assert len(lines) == 10
    written = json.dumps(lines)
    for part in (secret, LINE, text[:20]):
        assert part not in written


def test_a_sample_of_answers_and_every_failure_are_written() -> None:
    lines: list[str] = []
    log = AccessLog(lambda text: lines.extend(text.splitlines()), 0.25, {})
    wanted = sum(log.wants(200) for _ in range(4000))
    assert 800 < wanted < 1200
    assert all(log.wants(500) for _ in range(500))
    log.close()


def test_without_a_sample_only_errors_are_written(logged: Callable[..., Lines]) -> None:
    def ask(client: TestClient) -> None:
        for _ in range(20):
            client.post("/classify", content=encode())
        client.post("/classify", content=b"no image")

    (line,) = logged(ask, sample=0.0)
    assert line["status"] == 415


def test_a_defect_of_ours_is_always_written() -> None:
    async def fail(request: Any) -> Any:
        raise ZeroDivisionError

    watch, lines = Watch(), list[str]()
    with TestClient(Api({"/x": {"GET": fail}}, watch=watch)) as client, logging_to(lines, watch, 0):
        for _ in range(MAX_REFUSALS * 3):
            client.get("/x")
    found = [json.loads(line) for line in lines]
    assert [(line["status"], line["code"]) for line in found] == [(500, "internal")] * len(found)
    assert len(found) == MAX_REFUSALS * 3


def test_refusals_are_written_up_to_a_bound_and_the_rest_is_told(
    logged: Callable[..., Lines],
) -> None:
    num_asked = 300

    def ask(client: TestClient) -> None:
        for _ in range(num_asked):
            client.get("/nothing")
        client.post("/classify", content=encode())

    lines = logged(ask)
    refusals = [line for line in lines if line["status"] == 404]
    assert MAX_REFUSALS <= len(refusals) < num_asked
    assert len(refusals) + sum(line.get("skipped", 0) for line in lines) == num_asked


def test_the_revision_of_the_labels_stands_in_it(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path, kind="dynamic", name="caps")
    labels = {"label_store": str(tmp_path / "labels"), "label_poll_seconds": 3600}
    model, lines = open_served(ServeOptions(bundle=bundle, threads=1, **labels)), list[str]()
    with TestClient(build_asgi(model)) as client, logging_to(lines, model.watch):
        client.post("/classify", content=encode())
        client.post("/infer", content=encode(), headers={"Inference-Header-Content-Length": "0"})
    model.close()
    assert [json.loads(line)["label_revision"] for line in lines] == [0, 0]


def test_calls_over_grpc_are_written_in_the_same_words(options: ServeOptions) -> None:
    model, lines = open_served(options), list[str]()
    request = image_request(encode(1), encode(2))
    with logging_to(lines, model.watch, about=model.facts):
        for address in serve(model, Keys(LINE_ROW)):
            client = GrpcClient(address, {"x-api-key": LINE, "x-request-id": "g"})
            client.call("ModelInfer", request)
            client.refused("INVALID_ARGUMENT", "ModelInfer", image_request(b"no image"))
            client.close()
    model.close()
    good, bad = (json.loads(line) for line in lines)
    assert set(good) == FIELDS
    path = "/inference.GRPCInferenceService/ModelInfer"
    expected = {"protocol": "grpc", "call": "infer", "method": "ModelInfer", "path": path}
    assert (expected | {"status": 200, "images": 2, "key": "line-4"}).items() <= good.items()
    assert good["bytes_in"] == request.ByteSize()
    assert (bad["status"], bad["code"], bad["request_id"]) == (415, "image_type", "g")


def test_a_batch_is_shared_out_among_the_requests_in_it(model: ServedModel) -> None:
    from serve_app.statistics import Statistics
    from serve_app.trace import Trace

    trace = Trace("a", "http")
    statistics = Statistics()
    statistics.note(trace, 1, 10, 20, 30)
    statistics.note(trace, 2, 1, 2, 3)
    statistics.note(None, 1, 1, 1, 1)
    assert (trace.images, trace.queue_ns, trace.input_ns, trace.infer_ns) == (3, 11, 22, 33)


def test_it_lies_beside_the_log_of_the_replica_and_is_rotated_as_that_is(tmp_path: Path) -> None:
    target = RotatingFileHandler(tmp_path / "replica_x.log", maxBytes=300, backupCount=2)
    logger = logging.Logger("of a replica")
    logger.addHandler(MemoryHandler(10, target=target))
    log = AccessLog(beside(logger, "access_x.log"), 1.0, {"model": "tiny"})
    for number in range(2):
        log.add({"request_id": str(number)})
    log.close()
    lines = (tmp_path / "access_x.log").read_text().splitlines()
    assert [json.loads(line)["request_id"] for line in lines] == ["0", "1"]
    write = beside(logger, "access_x.log")
    for number in range(9):
        write(f"{number} {'x' * 100}")
    assert sorted(path.name for path in tmp_path.glob("access*")) == [
        "access_x.log",
        "access_x.log.1",
        "access_x.log.2",
    ]
    assert beside(logging.Logger("of nobody"), "x") is to_stderr


def test_a_disk_that_is_full_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write = to_file(Path("/dev/full"))
    log = AccessLog(write, 1.0, {})
    log.add({"request_id": "a"})
    log.close()
    assert "the access log cannot be written: OSError(28" in caplog.text
