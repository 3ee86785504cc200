"""Answers that are not read, behind uvicorn and a real connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from starlette.types import Receive, Scope, Send

import serve_app.unread
from serve_app.fast_path import send_at_once
from serve_app.long_way import answer_bounded
from serve_app.replies import Reply, send_reply
from serve_app.routing import Api
from tests.serve_app.test_fast_path import served

pytestmark = pytest.mark.slow  # seconds of looking on

LARGE = 16 << 20  # more than the system's buffers take
LOOK_SECONDS = 1.0


class Teller:
    """An application with a large answer, by the short way or the long one."""

    def __init__(self, *, is_long: bool) -> None:
        self.cycle: Any = None
        self._is_long = is_long

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.cycle = receive.__self__  # type: ignore[attr-defined]
        if self._is_long:
            await answer_bounded(_answer, Api({}), scope, receive, send)
        else:
            await _answer(scope, receive, send_at_once(send, self.cycle))


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    close = {"Connection": "close"} if scope["path"] == "/close" else {}
    await send_reply(Reply(bytes(LARGE), headers=close), send)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """How loops are made: Ray has uvloop's where it is installed."""
    monkeypatch.setattr(serve_app.unread, "LOOK_SECONDS", LOOK_SECONDS)
    return request.param


@pytest.mark.parametrize("is_long", [False, True])
@pytest.mark.parametrize("path", [b"/", b"/close"])
def test_an_answer_that_is_not_read_is_given_up(
    loop: Callable[[], asyncio.AbstractEventLoop], is_long: bool, path: bytes
) -> None:
    async def run() -> None:
        teller = Teller(is_long=is_long)
        async with served(teller) as (reader, writer):
            writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            began = time.monotonic()
            transport = teller.cycle.transport
            while teller.cycle.flow.write_paused or transport.get_write_buffer_size():
                assert time.monotonic() - began < 10 * LOOK_SECONDS
                await asyncio.sleep(0.02)
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await reader.readexactly(LARGE)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(run(), 20))


def test_who_reads_slowly_gets_everything(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """So slowly that the kernel asks for no more between two looks."""

    async def run() -> None:
        teller = Teller(is_long=False)
        async with served(teller) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            buffered = set()
            for _ in range(16):
                await reader.readexactly(1 << 17)
                buffered.add(teller.cycle.transport.get_write_buffer_size())
                await asyncio.sleep(LOOK_SECONDS / 4)
            assert len(buffered) < 8
            await reader.readexactly(LARGE - (16 << 17))

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(run(), 60))


def test_the_next_answer_on_a_connection_is_not_taken_for_the_one_before(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def run() -> None:
        async with served(Teller(is_long=False)) as (reader, writer):
            for _ in range(2):  # the second is there, and unread, when the first is looked at
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(LARGE)
                await asyncio.sleep(LOOK_SECONDS * 0.7)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(LOOK_SECONDS * 0.6)
            await reader.readexactly(LARGE)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(run(), 60))
