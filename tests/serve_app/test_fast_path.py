"""The way past Serve, as far as it can be walked without Serve: uvicorn and a real connection."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import RequestError
from serve_app.fast_path import TIMEOUT_HEADER, FastPath, read_on, send_at_once
from serve_app.replies import Reply
from serve_app.request import Request
from serve_app.routing import Api

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


class Teller:
    """An application that answers as ours do, and counts what goes down the connection."""

    def __init__(self, *, fails: bool = False) -> None:
        self.num_writes = 0
        self._fails = fails

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle = receive.__self__  # type: ignore[attr-defined]
        transport, teller = cycle.transport, self

        class Counting:
            def __getattr__(self, name: str) -> Any:
                return getattr(transport, name)

            def write(self, data: bytes) -> None:
                teller.num_writes += 1
                transport.write(data)

        cycle.transport = Counting()
        send = send_at_once(send, cycle)
        close = [(b"connection", b"close")] if b"close" in dict(scope["headers"]) else []
        headers = [(b"content-length", b"4"), *close]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if self._fails:
            raise RuntimeError("on purpose")
        await send({"type": "http.response.body", "body": b"good"})


@asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Serve with uvicorn, and give a connection to it."""
    config = uvicorn.Config(app, http="httptools", lifespan="off", log_level=60)
    server = uvicorn.Server(config)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        serving = asyncio.create_task(server.serve([listening]))
        while not server.started:
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        yield reader, writer
        writer.close()
        server.should_exit = True
        await serving


def test_an_answer_leaves_whole_and_the_connection_goes_on() -> None:
    """A replica killed between head and body cut an answer short, which nobody could repeat."""

    async def run() -> int:
        teller = Teller()
        async with served(teller) as (reader, writer):
            for _ in range(3):
                # Two at once: the second answer has to stand behind the first.
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
                for _ in range(2):
                    head = await reader.readuntil(b"\r\n\r\n")
                    assert head.startswith(b"HTTP/1.1 200")
                    assert await reader.readexactly(4) == b"good"
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nClose: yes\r\n\r\n")
            assert (await reader.read()).endswith(b"\r\n\r\ngood")
        return teller.num_writes

    assert asyncio.run(asyncio.wait_for(run(), 20)) == 7


def test_an_application_that_breaks_in_an_answer_ends_the_connection() -> None:
    async def run() -> bytes:
        async with served(Teller(fails=True)) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            return await reader.read()

    assert asyncio.run(asyncio.wait_for(run(), 20)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_client_that_leaves_is_seen_behind_a_body_of_any_size(size: int) -> None:
    async def run() -> bool | None:
        watcher = Watcher()
        # Passed on, since this is no replica of Serve's.
        async with served(FastPath(watcher)) as (_, writer):
            writer.write(HEAD % size + bytes(size // 2))
            await writer.drain()
            await asyncio.sleep(0.15)
            writer.write(bytes(size - size // 2))
            await writer.drain()
            await asyncio.wait_for(watcher.has_read.wait(), 20)
            writer.close()
            while watcher.has_seen_it_leave is None:
                await asyncio.sleep(0.02)
        return watcher.has_seen_it_leave

    assert asyncio.run(run())


@pytest.mark.parametrize("name", [b"x-request-id", TIMEOUT_HEADER])
def test_a_header_that_serve_could_not_decode_is_not_handed_on(name: bytes) -> None:
    """Serve decodes both as UTF-8, and answered 500 in its own words."""
    seen: list[tuple[bytes, bytes]] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(scope["headers"])

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None: ...

    kept = [(b"host", b"\xe9"), (name, "id-\u00e9".encode())]
    scope: Scope = {"type": "http", "method": "GET", "path": "/config", "root_path": ""}
    scope["headers"] = [*kept, (name, b"\xe9")]
    asyncio.run(FastPath(inner)(scope, receive, send))
    assert seen == kept


class FakeReplica:
    """What our way past Serve knows of a replica."""

    def __init__(self, api: Api) -> None:
        self.num_ongoing = 0
        self._metrics_manager = SimpleNamespace(
            inc_num_ongoing_requests=lambda _: self._count(1),
            dec_num_ongoing_requests=lambda _: self._count(-1),
            record_request_metrics=lambda **_: None,
            record_ingress_request_metrics=lambda **_: None,
        )
        self._deployment_id = SimpleNamespace(app_name="caps", name="model")
        self._http_options = SimpleNamespace(request_timeout_s=None)
        self._user_callable_wrapper = SimpleNamespace(_run_user_code_in_separate_thread=False)
        self._user_callable_asgi_app = api
        self._shutting_down = False
        self._route_prefix = "/v2/models/caps"

    def _count(self, more: int) -> None:
        self.num_ongoing += more

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stand in for what Serve answers."""
        raise AssertionError("the long way")


def test_a_refused_request_counts_for_serve_until_it_may_come_again() -> None:
    """Serve saw no more than what was let in, and ended replicas that refused."""
    has_room = False

    async def score(request: Request) -> Reply:
        if has_room:
            return Reply(b"scored")
        raise RequestError(429, "queue_full", "full")

    async def run() -> None:
        nonlocal has_room
        routes = {"/infer": {"POST": score}}
        replica = FakeReplica(Api(routes, retry_after="0.2", num_turned_away=3))
        app = FastPath(SimpleNamespace(_app=replica.answer))  # type: ignore[arg-type]

        async def ask() -> None:
            path = "/v2/models/caps/infer"
            scope = {"type": "http", "method": "POST", "path": path, "root_path": ""}

            async def receive() -> Message:
                return {"type": "http.request"}

            async def send(message: Message) -> None: ...

            await app({**scope, "query_string": b"", "headers": []}, receive, send)

        for most in (1, 2, 3, 3):
            await ask()
            assert replica.num_ongoing == most
        await asyncio.sleep(0.3)
        assert replica.num_ongoing == 0
        await ask()
        assert replica.num_ongoing == 1
        has_room = True
        await ask()
        assert replica.num_ongoing == 1
        has_room, replica._shutting_down = False, True
        await ask()  # a replica that leaves waits for nobody that it refuses
        assert replica.num_ongoing == 1

    asyncio.run(run())
