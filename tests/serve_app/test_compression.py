"""Compressed bodies of infer calls: read within bounds, sent only where asked for."""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from serve_app.oip.infer_json import LENGTH_HEADER
from tests.collector import collector_off
from tests.serve_app.conftest import encode, refused
from tests.serve_app.test_oip import image_tensor, outputs_of, with_length

PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}
LIMIT = 400_000  # of a body, in the options of these tests


@pytest.mark.parametrize("encoding", PACK)
def test_a_compressed_request_is_answered_like_the_plain_one(
    client: TestClient, encoding: str
) -> None:
    raw = with_length(encode())
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1]}
    head = json.dumps(
        {"inputs": [{**tensor, "parameters": {"binary_data_size": len(raw)}}]}
    ).encode()
    lengths = {LENGTH_HEADER: str(len(head))}
    plain = client.post("/infer", content=head + raw, headers=lengths)
    packed = client.post(
        "/infer",
        content=PACK[encoding](head + raw),
        headers={**lengths, "Content-Encoding": encoding},
    )
    assert packed.status_code == 200
    assert packed.json() == plain.json()


@pytest.mark.parametrize("encoding", PACK)
def test_an_answer_is_compressed_where_one_encoding_is_asked_for(
    client: TestClient, encoding: str
) -> None:
    request = {"inputs": [image_tensor(encode())], "parameters": {"binary_data_output": True}}
    packed = client.post("/infer", json=request, headers={"Accept-Encoding": encoding})
    plain = client.post("/infer", json=request, headers={"Accept-Encoding": "gzip, deflate, br"})
    assert packed.headers["content-encoding"] == encoding
    assert "content-encoding" not in plain.headers
    assert packed.headers[LENGTH_HEADER] == plain.headers[LENGTH_HEADER]  # of the plain JSON
    assert outputs_of(packed)["label"] == outputs_of(plain)["label"]


@pytest.mark.parametrize("encoding", PACK)
@pytest.mark.parametrize("size", [LIMIT + 1, 100 << 20])
def test_a_body_that_unpacks_to_more_than_a_body_may_have_is_refused(
    client: TestClient, encoding: str, size: int
) -> None:
    bomb = PACK[encoding](bytes(size))
    assert len(bomb) < LIMIT
    with collector_off():
        started = time.process_time()
        answer = client.post("/infer", content=bomb, headers={"Content-Encoding": encoding})
        spent = time.process_time() - started
    assert "when unpacked" in refused(answer, 413, "body_too_large")
    assert spent < 0.2  # 100 MiB take longer


WHOLE = gzip.compress(b"{}" * 1000)


@pytest.mark.parametrize(
    "body",
    [b"", b"no gzip", WHOLE[:-1], WHOLE[:20], WHOLE + b"x", WHOLE + WHOLE, zlib.compress(b"")],
)
def test_a_body_that_does_not_unpack_is_told_so(client: TestClient, body: bytes) -> None:
    answer = client.post("/infer", content=body, headers={"Content-Encoding": "gzip"})
    assert "gzip" in refused(answer, 400, "bad_encoding")


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "x" * 1000])
def test_another_encoding_is_refused_with_those_that_are_read(
    client: TestClient, encoding: str
) -> None:
    answer = client.post("/infer", content=b"{}", headers={"Content-Encoding": encoding})
    assert "use gzip or deflate" in refused(answer, 415, "content_encoding")


def test_the_calls_for_people_read_no_compressed_bodies(client: TestClient) -> None:
    body = gzip.compress(encode())
    answer = client.post("/classify", content=body, headers={"Content-Encoding": "gzip"})
    refused(answer, 415, "content_encoding")
