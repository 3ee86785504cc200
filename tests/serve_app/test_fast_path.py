"""The way past Serve, as far as it can be walked without Serve: uvicorn and a real connection."""

from __future__ import annotations

import asyncio
import socket

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from serve_app.fast_path import FastPath, read_on

HEAD = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
SMALL, LARGE = 1_000, 300_000  # uvicorn stops reading with 64 KiB at hand


class Watcher:
    """An application that takes the whole of a body, then looks whether its client leaves."""

    def __init__(self) -> None:
        self.has_read = asyncio.Event()
        self.has_seen_it_leave: bool | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle = receive.__self__  # type: ignore[attr-defined]
        receive = read_on(receive, cycle)
        while (await receive()).get("more_body", False):
            pass
        self.has_read.set()
        for _ in range(100):
            await asyncio.sleep(0.02)
            if cycle.disconnected:
                break
        self.has_seen_it_leave = cycle.disconnected


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_client_that_leaves_is_seen_behind_a_body_of_any_size(size: int) -> None:
    async def run() -> bool | None:
        watcher = Watcher()
        # Passed on, since this is no replica of Serve's.
        config = uvicorn.Config(FastPath(watcher), http="httptools", lifespan="off", log_level=60)
        server = uvicorn.Server(config)
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            serving = asyncio.create_task(server.serve([listening]))
            while not server.started:
                await asyncio.sleep(0.01)
            _, writer = await asyncio.open_connection(*listening.getsockname())
            writer.write(HEAD % size + bytes(size // 2))
            await writer.drain()
            await asyncio.sleep(0.15)
            writer.write(bytes(size - size // 2))
            await writer.drain()
            await asyncio.wait_for(watcher.has_read.wait(), 20)
            writer.close()
            while watcher.has_seen_it_leave is None:
                await asyncio.sleep(0.02)
            server.should_exit = True
            await serving
        return watcher.has_seen_it_leave

    assert asyncio.run(run())
