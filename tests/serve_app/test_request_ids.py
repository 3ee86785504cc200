"""The id of a request: taken or made, sent back with every answer, and in every line of the log."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve_app.asgi import build_asgi
from serve_app.config import ServeOptions
from serve_app.keys import Keys
from serve_app.model import ServedModel, open_served
from serve_app.replies import json_reply
from serve_app.routing import Api
from serve_app.trace import KEY, LONGEST_ID, mark_records
from serve_app.watch import Watch
from tests.serve_app.conftest import ROOT, encode
from tests.serve_app.grpc_client import GrpcClient, image_request
from tests.serve_app.grpc_server import serve

SANE = ("a", "42", "0d7c2b4e-6f7f-4c3f", "!~", "x" * LONGEST_ID)
ODD = ("", "two words", "x" * (LONGEST_ID + 1), "\xe9", "tab\there", "\x7f")
CALLS: list[tuple[str, str, dict[str, Any], int]] = [
    ("POST", "/classify", {"content": encode()}, 200),
    ("POST", "/classify", {"content": b"no image"}, 415),
    ("POST", "/classify", {"content": b"x" * 500_000}, 413),
    ("GET", "/classify", {}, 405),
    ("GET", "/nothing", {}, 404),
    ("GET", "/versions/9", {}, 404),
    ("GET", "/ready", {}, 200),
    ("GET", "/openapi.json", {}, 200),
]


@pytest.mark.parametrize(("method", "path", "given", "status"), CALLS)
def test_every_answer_carries_the_id_of_its_request(
    client: TestClient, method: str, path: str, given: dict[str, Any], status: int
) -> None:
    answer = client.request(method, path, headers={KEY: "line-4:1"}, **given)
    assert (answer.status_code, answer.headers.get_list(KEY)) == (status, ["line-4:1"])
    first, second = (client.request(method, path, **given).headers[KEY] for _ in range(2))
    assert uuid.UUID(first) != uuid.UUID(second)


@pytest.mark.parametrize("given", SANE)
def test_a_sane_id_is_kept(client: TestClient, given: str) -> None:
    assert client.get("/ready", headers={KEY: given}).headers[KEY] == given


@pytest.mark.parametrize("given", ODD)
def test_any_other_id_is_replaced(client: TestClient, given: str) -> None:
    answer = client.get("/ready", headers=[(KEY.encode(), given.encode("latin-1"))])
    assert uuid.UUID(answer.headers[KEY])


def test_an_id_that_the_server_around_sends_back_is_not_sent_twice() -> None:
    async def ready(request: Any) -> Any:
        return json_reply({})

    watch = Watch()
    watch.is_echoed = True
    with TestClient(Api({"/ready": {"GET": ready}}, watch=watch)) as client:
        assert KEY not in client.get("/ready", headers={KEY: "a"}).headers
        assert uuid.UUID(client.get("/ready", headers={KEY: "a b"}).headers[KEY])


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """What our logger is told, marked as in a replica."""
    found: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record)

    logger, handler = logging.getLogger("ray.serve"), Keep()
    before = list(logger.filters)
    logger.addHandler(handler)
    mark_records(logger)
    mark_records(logger)  # once more changes nothing
    assert len(logger.filters) == len(before) + 1
    yield found
    logger.removeHandler(handler)
    logger.filters[:] = before


def test_what_is_logged_of_a_request_carries_its_id_and_nothing_else_does(
    model: ServedModel, records: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("ray.serve")
    prepare = model.predictor.prepare

    def noisy(*arguments: Any) -> Any:
        logger.error("decoding")
        return prepare(*arguments)

    async def fail(request: Any) -> Any:
        logger.error("about to fail")
        raise ZeroDivisionError

    monkeypatch.setattr(model.predictor, "prepare", noisy)
    logger.error("before")
    with TestClient(Api({"/x": {"GET": fail}})) as client:
        assert client.get("/x", headers={KEY: "first"}).status_code == 500
    with TestClient(build_asgi(model), base_url=f"http://test{ROOT}", root_path=ROOT) as client:
        client.post("/classify", content=encode(), headers={KEY: "second"})
    logger.error("after")
    told = [(record.getMessage(), getattr(record, "request_id", None)) for record in records]
    assert told == [
        ("before", None),
        ("about to fail", "first"),
        ("a request failed", "first"),
        ("decoding", "second"),  # on a thread of the pool
        ("after", None),
    ]


def test_calls_over_grpc_carry_it_in_their_trailing_metadata(options: ServeOptions) -> None:
    model = open_served(options)
    for address in serve(model, Keys()):
        for sent, kept in (
            ({}, None),
            ({"x-request-id": "a-1"}, "a-1"),
            ({"request_id": "b-2"}, "b-2"),
            ({"x-request-id": "a-1", "request_id": "b-2"}, "a-1"),
            ({"x-request-id": "x" * 129}, None),
        ):
            client = GrpcClient(address, sent)
            for request in (image_request(encode()), image_request(b"no image")):
                got = client.trailing("ModelInfer", request)[KEY]
                assert got == kept if kept else uuid.UUID(got)
            client.close()
    model.close()
