"""Requests from somebody who means harm, over a real socket and below it: paths and queries that
are no text, headers that contradict each other, lengths that lie, values nested without end,
addresses to be fetched. Each is answered 4xx in the error form, or the connection ends; never 5xx.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from serve_app.asgi import build_asgi
from serve_app.model import ServedModel
from tests.serve_app.conftest import ROOT as MOUNT
from tests.serve_app.conftest import encode
from tests.serve_app.hammer import offence, send
from tests.serve_app.mutations import Sent
from tests.serve_app.test_schemathesis import listening

ROOT = Path(__file__).parents[2]
IMAGE = encode()
SECONDS_OF_SILENCE = 4
MOST_BYTES = 1500  # of a refusal


def ask(model: ServedModel, sent: Sent) -> tuple[int, bytes]:
    """Send through ASGI itself; assert that the answer keeps to the rules."""

    async def answer() -> tuple[int, dict[bytes, bytes], bytes]:
        return await send(build_asgi(model), sent, MOUNT)

    status, headers, body = asyncio.run(answer())
    assert not offence(status, headers, body)
    assert status == 200 or len(body) < MOST_BYTES
    return status, body


# --- paths and queries ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/classify/../embed",
        "/%2e%2e/classify",
        "/..",
        "/./classify",
        "//classify",
        "/classify\x00",
        "/\x00",
        "/classify\udcff",
        "/\ufffd",
        "/CLASSIFY",
        "/classify;a=b",
        "/classify%2f",
        "\\classify",
        "/versions/../classify",
        "/versions//classify",
        "/versions/1/versions/1/classify",
        "/versions/0x1/classify",
        "/versions/\u0661/classify",
        "/versions/" + "1" * 10_000,
        "/labels/revisions/0",
        "/*",
        "/views/*",
        "/" + "a/" * 5000,
        "/" + "a" * 60_000,
    ],
)
def test_a_path_that_is_none_of_ours_is_not_found(model: ServedModel, path: str) -> None:
    status, _ = ask(model, Sent("POST", path, b"", [], IMAGE))
    assert status == 404


def test_a_final_slash_changes_nothing(model: ServedModel) -> None:
    assert ask(model, Sent("POST", "/classify/", b"", [], IMAGE))[0] == 200


@pytest.mark.parametrize(
    "query",
    [
        b"top_k=1&top_k=2",
        b"top_k=1&" + b"top_k=1&" * 5000,
        b"=",
        b"&" * 10_000 + b"x=1",
        b"top_k",
        b"top_k=%ff",
        b"top_k=\xff",
        b"\xff\xfe=\x00",
        b"top_k=%00",
        b"scores=all%00",
        b"top_k=" + b"9" * 60_000,
        b"x" * 60_000,
        b"top_k[]=1",
        b"scores=" + b"%25" * 9000,
        b"top_k=%D9%A1",
        b"top_k=1_0",
        b"top_k= 1e1",
    ],
)
def test_a_query_that_is_none_is_refused_in_short(model: ServedModel, query: bytes) -> None:
    started = time.process_time()
    status, _ = ask(model, Sent("POST", "/classify", query, [], IMAGE))
    assert status == 400
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    "method", ["OPTIONS", "TRACE", "CONNECT", "DELETE", "", "post", "X" * 9000]
)
def test_a_method_that_a_call_does_not_take_is_refused(model: ServedModel, method: str) -> None:
    assert ask(model, Sent(method, "/classify", b"", [], IMAGE))[0] == 405


def test_head_is_answered_where_get_is(model: ServedModel) -> None:
    assert ask(model, Sent("HEAD", "/ready", b"", [], b""))[0] == 200
    assert ask(model, Sent("HEAD", "/classify", b"", [], b""))[0] == 405


# --- headers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("content-type", b"multipart/form-data; boundary=\xff\xfe"),
        ("content-type", b"multipart/form-data; boundary=" + b'"' * 500),
        ("content-type", b"multipart/form-data;" + b"a=b;" * 20_000),
        ("content-type", b"application/json\x00"),
        ("content-type", b"\xff" * 1000),
        ("content-length", b"-1"),
        ("content-length", b"1, 1"),
        ("content-length", b"\xb9"),
        ("content-encoding", b"gzip, gzip"),
        ("content-encoding", b"\xff"),
        ("inference-header-content-length", b"18446744073709551616"),
        ("authorization", b"Bearer " + b"\xff" * 5000),
        ("authorization", b"\x00"),
        ("x-api-key", b"\xe9"),
        ("accept", b"\xff" * 9000),
    ],
)
@pytest.mark.parametrize("path", ["/classify", "/embed", "/infer"])
def test_a_header_of_any_bytes_is_no_failure(
    model: ServedModel, path: str, name: str, value: bytes
) -> None:
    ask(model, Sent("POST", path, b"", [(name.encode(), value)], IMAGE))
    # Twice, with another value: whichever counts, it is no failure.
    ask(model, Sent("POST", path, b"", [(name.encode(), value), (name.encode(), b"x")], IMAGE))


@pytest.fixture(scope="module")
def address(model: ServedModel) -> Iterator[tuple[str, int]]:
    """Where the model listens, for those who write HTTP by hand."""
    with listening(build_asgi(model)) as url:
        host, _, port = url.removeprefix("http://").removesuffix(MOUNT).partition(":")
        yield host, int(port)


def exchange(address: tuple[str, int], *parts: bytes, hangs_up: bool = False) -> bytes:
    """Write bytes and return what comes back until the other side closes or is silent."""
    received = b""
    # The other side may have ended the connection while we still send.
    with (
        socket.create_connection(address, timeout=SECONDS_OF_SILENCE) as connection,
        suppress(ConnectionError, TimeoutError),
    ):
        for part in parts:
            connection.sendall(part)
            time.sleep(0.02)
        if hangs_up:
            connection.shutdown(socket.SHUT_WR)
        while chunk := connection.recv(65536):
            received += chunk
    return received


def head(*lines: str, path: str = "/classify") -> bytes:
    """Return the head of a request."""
    return "\r\n".join((f"POST {MOUNT}{path} HTTP/1.1", "Host: x", *lines, "", "")).encode(
        "latin-1"
    )


def statuses(received: bytes) -> list[int]:
    """Return the statuses of all answers in a stream."""
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]


GZIP = "Content-Encoding: gzip"
SMUGGLED = b"GET /secret HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "request_bytes",
    [
        head("Content-Length: 5", "Content-Length: 6") + b"hello",
        head("Content-Length: 3", "Transfer-Encoding: chunked") + b"0\r\n\r\n" + SMUGGLED,
        head("Transfer-Encoding: chunked, identity") + b"0\r\n\r\n",
        head("Transfer-Encoding: xchunked") + b"0\r\n\r\n",
        head("Transfer-Encoding : chunked") + b"0\r\n\r\n",
        head("Content-Length: +5") + b"hello",
        head("Content-Length: 5_0") + b"hello",
        head("X: a\x00b", "Content-Length: 0"),
        head("Transfer-Encoding: chunked") + b"zz\r\nhello\r\n0\r\n\r\n",
        head("Transfer-Encoding: chunked") + b"ffffffffffffffffff\r\nhello",
        head("X: " + "y" * 200_000),
        b"POST  HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\xff" * 5000,
        b"POST %s/classify HTTP/9.9\r\n\r\n" % MOUNT.encode(),
    ],
)
def test_http_that_is_none_is_refused_and_the_connection_ends(
    address: tuple[str, int], request_bytes: bytes
) -> None:
    received = exchange(address, request_bytes)
    assert len(statuses(received)) <= 1, received  # nothing is smuggled behind it
    assert all(400 <= status < 500 for status in statuses(received)), received
    assert is_well(address)


def test_a_length_that_promises_more_than_comes_is_no_failure(address: tuple[str, int]) -> None:
    received = exchange(address, head("Content-Length: 5000"), IMAGE[:100], hangs_up=True)
    assert all(status < 500 for status in statuses(received)), received
    assert is_well(address)


def test_a_length_that_promises_less_than_comes_cuts_the_image_there(
    address: tuple[str, int],
) -> None:
    received = exchange(address, head("Content-Length: 100"), IMAGE)
    # The rest is no request: the server may see that before it has answered the first.
    assert statuses(received)
    assert set(statuses(received)) <= {400, 422}, received


def test_a_body_in_small_chunks_is_one_body(address: tuple[str, int]) -> None:
    chunks = b"".join(
        b"%x\r\n%s\r\n" % (len(part), part)
        for part in (IMAGE[at : at + 7] for at in range(0, len(IMAGE), 7))
    )
    lines = ("Transfer-Encoding: chunked", "Connection: close")
    received = exchange(address, head(*lines), chunks + b"0\r\n\r\n")
    assert statuses(received) == [200]


def test_chunks_beyond_the_limit_are_refused_while_they_come(
    model: ServedModel, address: tuple[str, int]
) -> None:
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    # No more than takes it over the limit: what is left unread would reset the connection.
    num_chunks = model.limits.max_body_bytes // 0x10000 + 1
    received = exchange(address, head("Transfer-Encoding: chunked"), *[chunk] * num_chunks)
    assert statuses(received) == [413]
    assert b"body_too_large" in received


def is_well(address: tuple[str, int]) -> bool:
    """Say whether the model still answers."""
    request = head(f"Content-Length: {len(IMAGE)}", "Connection: close") + IMAGE
    return statuses(exchange(address, request)) == [200]


# --- values --------------------------------------------------------------------------------------


DEEP = b"[" * 5000 + b"]" * 5000
DEEPER = b'{"a":' * 4000 + b"1" + b"}" * 4000


@pytest.mark.parametrize(
    "body",
    [
        b'{"image":%s}' % DEEP,
        b'{"images":%s}' % DEEP,
        b'{"images":[%s]}' % DEEPER,
        b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[1],"data":%s}]}' % DEEP,
        b'{"inputs":[{"name":"pixels","datatype":"UINT8","shape":[1,64,64,3],"data":%s}]}' % DEEP,
        b'{"inputs":%s}' % DEEPER,
        b'{"image":1e999}',
        b'{"image":"\\ud800"}',
        b'{"image":"\\u0000"}',
        b'{"id":' + b"9" * 5000 + b"}",
        b'{"images":[' + b'"",' * 3 + b'""]}',
        b'{"image":"","image":"%"}',
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
    ],
)
@pytest.mark.parametrize("path", ["/classify", "/infer"])
def test_json_nested_or_broken_in_any_way_is_refused(
    model: ServedModel, path: str, body: bytes
) -> None:
    headers = [(b"content-type", b"application/json")]
    status, _ = ask(model, Sent("POST", path, b"", headers, body))
    assert status in (200, 400)  # 200 with one error per image, where there are several


# --- addresses -----------------------------------------------------------------------------------

ADDRESSES = (
    "http://127.0.0.1:9/a.png",
    "https://example.com/a.png",
    "file:///etc/passwd",
    "ftp://127.0.0.1/a",
    "s3://bucket/key.png",
    "//127.0.0.1/a.png",
    "gopher://127.0.0.1",
    "data:text/html,<img src=http://127.0.0.1:9/>",
    "data:;base64,http://127.0.0.1:9/",
    "http://[::1]:9/",
)
# An audit hook sees every socket and every name looked up, by whatever library.
WATCHER = """
import asyncio, json, sys
from serve_app.asgi import build_asgi
from serve_app.model import open_served
from tests.serve_app.hammer import options_for, send
from tests.serve_app.mutations import Sent
model = open_served(options_for(sys.argv[1]))
async def ask(api, request):
    return await send(api, Sent(*request), "/v2/models/tiny")
requests = json.loads(sys.stdin.read())
loop = asyncio.new_event_loop()
api = build_asgi(model)
first = [requests[0]["method"], requests[0]["path"], b"", [], requests[0]["body"].encode("latin-1")]
loop.run_until_complete(ask(api, first))
done = []
def audit(event, arguments):
    if event.startswith(("socket.", "urllib.", "http.", "ftplib.", "subprocess.", "os.system")):
        done.append((event, repr(arguments)[:100]))
    if event == "open" and "passwd" in str(arguments[0]):
        done.append((event, str(arguments[0])))
sys.addaudithook(audit)
statuses = []
for each in requests:
    headers = [(n.encode(), v.encode()) for n, v in each["headers"].items()]
    request = [each["method"], each["path"], b"", headers, each["body"].encode("latin-1")]
    statuses.append(loop.run_until_complete(ask(api, request))[0])
seen = list(done)
import socket
socket.socket().close()
print(json.dumps({"seen": seen, "statuses": statuses, "works": len(done) > len(seen)}))
"""


@pytest.mark.slow
def test_no_address_that_a_client_sends_is_ever_fetched(bundle_uri: str) -> None:
    requests: list[dict[str, Any]] = []

    def add(path: str, body: bytes, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        text = body.decode("latin-1")
        requests.append({"method": "POST", "path": path, "body": text, "headers": named})

    for address in ADDRESSES:
        for value in ({"image": address}, {"images": [address, address]}):
            add("/classify", json.dumps(value).encode(), content_type="application/json")
        add("/classify", address.encode())
        add("/embed", b"<svg xmlns:xlink='x'><image xlink:href='%s'/></svg>" % address.encode())
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [address]}
        add("/infer", json.dumps({"inputs": [tensor]}).encode())
        part = f'--b\r\nContent-Disposition: form-data; name="f"; filename="{address}"\r\n'
        body = part.encode() + b"\r\n" + IMAGE + b"\r\n--b--\r\n"
        add("/classify", body, content_type="multipart/form-data; boundary=b")
        location = {"Host": "127.0.0.1:9", "X-Forwarded-Host": address, "Referer": address}
        add("/classify", IMAGE, **location)
        text = base64.b64encode(address.encode()).decode()
        add("/classify", json.dumps({"image": text}).encode(), content_type="application/json")
    done = subprocess.run(
        [sys.executable, "-c", WATCHER, bundle_uri],
        cwd=ROOT,
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["works"], "the hook sees no socket at all"
    assert told["seen"] == []
    assert set(told["statuses"]) <= {200, 400, 415}
    assert len(told["statuses"]) == len(requests) == 8 * len(ADDRESSES)
