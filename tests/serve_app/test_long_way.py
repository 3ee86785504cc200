"""Bodies that Serve reads ahead, by its own class that does so, behind uvicorn and a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy
from starlette.types import Receive, Scope, Send

from serve_app.catalog import MAX_REQUESTS, build
from serve_app.long_way import UNREAD_BYTES, answer_bounded
from serve_app.replies import Reply, send_reply
from serve_app.routing import MAX_BODY_BYTES, Api
from tests.serve_app.test_fast_path import served

PART = bytes(8192)
CHUNK = b"2000\r\n" + PART + b"\r\n"
PATIENCE = 20.0


class Serve:
    """Does with a request what a replica of Serve does, whose application waits for a store."""

    def __init__(self) -> None:
        self.num_bytes = 0  # that were read ahead
        self.has_read = asyncio.Event()  # the whole of it
        self.may_answer = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ahead = ASGIDIReceiveProxy(scope, receive, asyncio.get_running_loop())
        reading = ahead.fetch_until_disconnect_task()
        counting = asyncio.create_task(self._count(ahead))
        answering = asyncio.create_task(self.may_answer.wait())
        await asyncio.wait([reading, answering], return_when=asyncio.FIRST_COMPLETED)
        is_gone = reading.done()
        for task in (reading, counting, answering):
            task.cancel()
        await send_reply(Reply(b"in Serve's words", 499 if is_gone else 200), send)
        if is_gone:
            raise asyncio.CancelledError

    async def _count(self, ahead: ASGIDIReceiveProxy) -> None:
        while (message := await ahead())["type"] == "http.request":
            self.num_bytes += len(message["body"])
            if not message["more_body"]:
                self.has_read.set()


def answered(
    head: bytes,
    ask: Callable[[asyncio.StreamReader, asyncio.StreamWriter, Serve], Coroutine[Any, Any, bytes]],
) -> tuple[bytes, Serve]:
    """Send the head of a request and what `ask` sends; return all that comes back."""

    async def run() -> tuple[bytes, Serve]:
        behind = Serve()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await answer_bounded(behind, Api({}), scope, receive, send)

        async with served(app) as (reader, writer):
            writer.write(head + b"\r\nHost: x\r\n")
            answer = await asyncio.wait_for(ask(reader, writer, behind), PATIENCE)
        return answer, behind

    return asyncio.run(run())


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: Serve) -> bytes:
    """Send parts until there is an answer."""
    writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
    answer = asyncio.create_task(reader.readuntil(b"}"))
    while not answer.done():
        writer.write(CHUNK)
        await asyncio.sleep(0.001)
    return await answer


def test_a_body_without_an_end_is_refused_though_nobody_reads_it() -> None:
    for line, most in ((b"GET /labels", UNREAD_BYTES), (b"PUT /labels", MAX_BODY_BYTES)):
        answer, behind = answered(line + b" HTTP/1.1", endless)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in head.lower()
        assert orjson.loads(body)["code"] == "body_too_large"
        assert behind.num_bytes <= most


def test_a_body_that_tells_that_it_is_too_large_is_not_read_at_all() -> None:
    async def ask(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, behind: Serve
    ) -> bytes:
        writer.write(b"Content-Length: 1000000\r\n\r\n" + PART * 20)
        await asyncio.sleep(0.1)
        behind.may_answer.set()
        return await reader.readuntil(b"words")

    answer, behind = answered(b"GET /labels HTTP/1.1", ask)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert behind.num_bytes == 0


def test_a_body_that_a_call_takes_is_handed_on_whole() -> None:
    async def ask(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, behind: Serve
    ) -> bytes:
        writer.write(b"Content-Length: 819200\r\n\r\n" + PART * 100)
        await behind.has_read.wait()
        behind.may_answer.set()
        return await reader.readuntil(b"words")

    answer, behind = answered(b"PUT /labels HTTP/1.1", ask)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert behind.num_bytes == 819_200


def test_the_catalog_lets_more_than_a_few_wait_and_not_without_end() -> None:
    deployment = build({})._bound_deployment
    assert deployment.max_ongoing_requests == deployment.max_queued_requests == MAX_REQUESTS
