"""Requests made to cost much: each is refused at once, in the error form, with a short answer."""

from __future__ import annotations

import asyncio
import time

import pytest
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope

from serve_app.asgi import build_asgi
from serve_app.model import ServedModel
from serve_app.oip.infer_json import LENGTH_HEADER
from tests.serve_app.conftest import ROOT, encode, refused

MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}
JSON = {"Content-Type": "application/json"}
NAMED = b'\r\nContent-Disposition: form-data; name="f"; filename="a.jpg"\r\n'


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "code"),
    [
        ("/classify", b"\r\n--bx" * 60_000, MULTIPART, 413, "too_many_images"),
        ("/classify", b"--b" + NAMED * 5000, MULTIPART, 400, "bad_multipart"),
        ("/classify", b"--b" + b" " * 300_000, MULTIPART, 400, "bad_multipart"),
        (
            "/classify",
            b"",
            {"Content-Type": "multipart/form-data; boundary=" + "b" * 300},
            400,
            "bad_multipart",
        ),
        ("/classify", b"[" + b"[]," * 100_000 + b"[]]", JSON, 400, "bad_json"),
        ("/classify", b'{"' + b"k" * 300_000 + b'":1}', JSON, 400, "bad_json"),
        ("/infer", b"[" * 300_000, {}, 400, "bad_json"),
        ("/infer", b"{}", {LENGTH_HEADER: "9" * 5000}, 400, "bad_request"),
        ("/infer", b"{}", {LENGTH_HEADER: "²"}, 400, "bad_request"),
        ("/classify", b"x", {"Content-Length": "9" * 5000}, 400, "bad_request"),
    ],
)
def test_a_body_made_to_be_slow_is_refused_with_a_short_answer(
    client: TestClient, path: str, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    started = time.process_time()
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    told = refused(client.post(path, content=body, headers=raw), status, code)
    assert len(told) < 500
    assert time.process_time() - started < 1


@pytest.mark.parametrize("path", ["/classify", "/infer"])
def test_json_of_countless_values_is_not_even_parsed(client: TestClient, path: str) -> None:
    body = b'{"image":[' + b"[]," * 120_000 + b"[]]}"
    told = refused(client.post(path, content=body, headers=JSON), 400, "bad_json")
    assert "lists, objects and commas" in told


@pytest.mark.parametrize("key", ["datatype", "shape", "name"])
@pytest.mark.parametrize("value", ["[" * 1000 + "]" * 1000, '"' + "x" * 300_000 + '"'])
def test_a_deep_or_long_value_is_told_in_short(client: TestClient, key: str, value: str) -> None:
    tensor = {"name": '"image"', "datatype": '"BYTES"', "shape": "[1]", "data": '["eA=="]'}
    fields = ",".join(f'"{name}":{text}' for name, text in {**tensor, key: value}.items())
    answer = client.post("/infer", content=f'{{"inputs":[{{{fields}}}]}}')
    assert len(refused(answer, 400, "bad_request")) < 300


def ask(model: ServedModel, receive: Receive) -> tuple[int, bytes]:
    """Post to /classify through ASGI itself, with a body that comes as `receive` says."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": f"{ROOT}/classify",
        "root_path": ROOT,
        "headers": [],
        "query_string": b"",
    }

    async def answer() -> None:
        await build_asgi(model)(scope, receive, send)

    asyncio.run(answer())
    status, body = sent[0]["status"], sent[1]["body"]
    assert isinstance(status, int)
    assert isinstance(body, bytes)
    return status, body


def test_a_client_that_leaves_while_sending_is_no_failure_of_ours(
    model: ServedModel, caplog: pytest.LogCaptureFixture
) -> None:
    messages: list[Message] = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": encode()[:100], "more_body": True},
    ]

    async def receive() -> Message:
        return messages.pop()

    status, body = ask(model, receive)
    assert status == 499
    assert b"client_gone" in body
    assert not caplog.records


def test_an_upload_that_does_not_end_is_given_up(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = model.limits.model_copy(update={"upload_seconds": 0.2})
    monkeypatch.setattr(model, "limits", limits)

    async def receive() -> Message:
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"x", "more_body": True}

    status, body = ask(model, receive)
    assert status == 408
    assert b"upload_timeout" in body
