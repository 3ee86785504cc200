"""The short way of a scoring request: from the HTTP server straight to our application.

Serve does more for each request than we do, most of it for what scoring has no use for: a task that
waits for the client to leave, a context with the request's facts, a look for its route, a place in
a queue of its own. A cluster may name middlewares that stand before all of it
(`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`, see `cluster.environment`); ours takes the scoring
requests of a replica and lets everything else pass. What Serve has to know it is told: how many
requests are under way, by which it scales and drains, and the metrics of each.

This reaches into Serve's replica, as Ray 2.60 has it. Where something is not there, or is asked for
that only Serve does (traces, a timeout of its own), requests go the long way, and it is logged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Any

from ray.serve._private.common import RequestMetadata, RequestProtocol
from ray.serve._private.constants import SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER
from ray.serve._private.tracing_utils import is_tracing_enabled
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.limits import CLIENT_GONE
from serve_app.logs import OURS
from serve_app.long_way import answer_bounded
from serve_app.routing import Api
from serve_app.unread import watch_reading
from serve_app.watch import NS_PER_MS, SCORING

logger = logging.getLogger(OURS)

TIMEOUT_HEADER = SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER.encode()
REFUSED = 429
DECODED = (TIMEOUT_HEADER, b"x-request-id")
# The two facts of a request by which Serve counts it; the same for all of ours.
METADATA = RequestMetadata(
    request_id="",
    internal_request_id="",
    _request_protocol=RequestProtocol.HTTP,
    is_direct_ingress=True,
)


def middlewares() -> list[Middleware]:
    """Return what Serve puts before a replica; it asks once in each replica and each proxy."""
    return [Middleware(FastPath)]


class FastPath:
    """The middleware. In a proxy, behind which there is no replica, everything passes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        replica, self._api = _replica_behind(app)
        self._entrance = None if self._api is None else _entrance(replica, self._api)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a scoring request, and hand on any other."""
        entrance = self._entrance
        if entrance is None or not entrance.takes(scope):
            if scope["type"] == "http":
                scope["headers"] = _that_decode(scope["headers"])
                if self._api is not None:
                    return await answer_bounded(self._app, self._api, scope, receive, send)
            return await self._app(scope, receive, send)
        return await entrance.answer(scope, receive, send)


def _that_decode(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return headers without an id or a time limit that is no UTF-8: Serve would answer 500."""
    return [(name, value) for name, value in headers if name not in DECODED or _is_text(value)]


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


class _Entrance:
    """One replica, as far as we know it, and the application in it."""

    def __init__(self, replica: Any, api: Api) -> None:
        """Raises `AttributeError` for a replica that is not as we know it."""
        self._replica = replica
        self._api = api
        metrics = replica._metrics_manager
        self._count_in = metrics.inc_num_ongoing_requests
        self._count_out = metrics.dec_num_ongoing_requests
        self._note = metrics.record_request_metrics
        self._note_ingress = metrics.record_ingress_request_metrics
        self._names = {
            "app_name": replica._deployment_id.app_name,
            "deployment_name": replica._deployment_id.name,
        }
        self._timeout = replica._http_options.request_timeout_s
        self._retry_after = float(api.retry_after)
        self._num_turned_away = 0
        self._is_leaving()
        api.is_leaving = self._is_leaving
        self._prefix()

    def takes(self, scope: Scope) -> bool:
        """Say whether a request is one that scores, and asks for nothing that only Serve does."""
        if scope["type"] != "http" or scope["method"] != "POST" or self._timeout is not None:
            return False
        path: str = scope["path"]
        return (
            path.rpartition("/")[2] in SCORING
            and path.startswith(f"{scope['root_path']}{self._prefix()}/")
            and all(name != TIMEOUT_HEADER for name, _ in scope["headers"])
        )

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer, and tell Serve of it."""
        started = time.perf_counter_ns()
        status = CLIENT_GONE  # where nothing is said

        # uvicorn's own object of one request knows when its connection has ended.
        cycle = getattr(receive, "__self__", None)
        send_whole = send_at_once(send, cycle)

        async def noting(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send_whole(message)

        prefix = self._prefix()
        scope["root_path"] += prefix
        self._count_in(METADATA)
        try:
            await self._api.answer(
                scope,
                read_on(receive, cycle),
                noting,
                connection=cycle if hasattr(cycle, "disconnected") else None,
            )
        finally:
            if status == REFUSED:
                self._turn_away()
            else:
                self._count_out(METADATA)
            spent_ms = (time.perf_counter_ns() - started) / NS_PER_MS
            self._note(route=prefix, latency_ms=spent_ms, is_error=False)
            self._note_ingress(
                protocol=RequestProtocol.HTTP,
                method="POST",
                route=prefix,
                latency_ms=spent_ms,
                is_error=status >= 400,
                status_code=str(status),
                **self._names,
            )

    def _turn_away(self) -> None:
        """Count a refused request until it may come again: it stands in no queue of ours, and Serve
        would see the least to do where there is too much of it. At most as many count as may be
        inside, so that Serve wants a few times the replicas, and looks again. Nobody waits so for a
        replica that leaves.
        """
        if self._num_turned_away < self._api.num_turned_away and not self._is_leaving():
            self._num_turned_away += 1
            asyncio.get_running_loop().call_later(self._retry_after, self._forget)
        else:
            self._count_out(METADATA)

    def _forget(self) -> None:
        self._num_turned_away -= 1
        self._count_out(METADATA)

    def _is_leaving(self) -> bool:
        return bool(self._replica._shutting_down)

    def _prefix(self) -> str:
        prefix: str = self._replica._route_prefix  # changes when the application moves
        return prefix


def read_on(receive: Receive, cycle: Any) -> Receive:
    """Return `receive`, behind which the connection is read on when the request has come.

    uvicorn stops reading while a large part of a body lies with it, and goes on when asked for
    the next part. Nobody asks after the last one, so it would not see the client leave.
    """
    flow = getattr(cycle, "flow", None)
    if flow is None:
        return receive

    async def receive_and_read_on() -> Message:
        message = await receive()
        if flow.read_paused and not message.get("more_body", False):
            flow.resume_reading()
        return message

    return receive_and_read_on


def send_at_once(send: Send, cycle: Any) -> Send:
    """Return `send`, by which an answer leaves whole.

    uvicorn writes its head and its body one after the other: two system calls here, two pieces for
    HAProxy and for the client to read, and an answer cut short where the replica is killed between
    the two, which HAProxy can then send to no other.
    """
    if not hasattr(cycle, "transport"):
        return send

    async def send_whole(message: Message) -> None:
        is_head = message["type"] == "http.response.start"
        if is_head:
            cycle.transport = _Held(cycle.transport)
        await send(message)
        is_last = not is_head and not message.get("more_body", False)
        if is_last and isinstance(cycle.transport, _Held):
            cycle.transport = cycle.transport.release()
            watch_reading(cycle)

    return send_whole


class _Held:
    """A transport that keeps what is written until it is released or closed."""

    __slots__ = ("_parts", "_transport")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Keep a part."""
        self._parts.append(data)

    def close(self) -> None:
        """Close the connection behind what is kept."""
        self.release().close()

    def release(self) -> Any:
        """Write what is kept, and return the transport that was held."""
        if self._parts:
            self._transport.write(b"".join(self._parts))
            self._parts.clear()
        return self._transport


def _replica_behind(app: ASGIApp) -> tuple[Any, Api | None]:
    """Return the replica that Serve has wrapped and our application in it, None in a proxy or for
    an application of somebody else.
    """
    replica = getattr(getattr(app, "_app", None), "__self__", None)
    api = getattr(replica, "_user_callable_asgi_app", None)
    return replica, api if isinstance(api, Api) else None


def _entrance(replica: Any, api: Api) -> _Entrance | None:
    """Return the entrance of a replica, None where it is not as we know it."""
    try:
        # On a thread of its own, our application could not be awaited here.
        is_apart = replica._user_callable_wrapper._run_user_code_in_separate_thread
        if not is_apart and not is_tracing_enabled():
            return _Entrance(replica, api)
        reason = "Serve runs applications on a thread of their own, or traces are on"
    except AttributeError as error:
        reason = f"this version of Ray is not known ({error})"
    logger.warning("scoring requests go the long way, through Serve: %s", reason)
    return None
