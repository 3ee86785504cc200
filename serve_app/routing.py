"""From a path and a method to the function that answers: an ASGI application in one screen.

A dictionary instead of a web framework, because the path of a scored image is the hot one and the
routes are few and fixed. Whatever a handler raises becomes the error form; a wrong path or method
too. It knows nothing of models.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace

from starlette.types import Receive, Scope, Send

from serve_app.errors import RequestError, error_reply
from serve_app.limits import CLIENT_GONE, CLOSE, has_much_to_come, parse_whole
from serve_app.replies import Reply, send_reply
from serve_app.request import Request
from serve_app.shown import shown
from serve_app.trace import KEY, Connection, Trace
from serve_app.watch import Watch

Handler = Callable[[Request], Awaitable[Reply]]
MAX_BODY_BYTES = 4 << 20  # of calls that do not score: a whole map of 10,000 labels has 2 MiB
MAX_PARTS = 12  # of a path that is looked up with a star
MAX_PARTS_TOLD = 3  # of a path that a 404 names

# Path below the mount point -> method -> handler; `*` stands for any part, at one place of a path.
Routes = Mapping[str, Mapping[str, Handler]]


GONE = Reply(b"", CLIENT_GONE)
TRY_AGAIN = (429, 503)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


class Api:
    """An ASGI application made of a table of routes."""

    def __init__(
        self,
        routes: Routes,
        *,
        rewrite: Callable[[str], str] | None = None,
        watch: Watch | None = None,
        name_call: Callable[[str], str] = str,
        retry_after: str = "1",
        num_turned_away: int = 0,
        max_body_bytes: int = MAX_BODY_BYTES,
        max_scoring_bytes: int = 0,
    ) -> None:
        """`rewrite` may change a path before it is looked up, or refuse it with an error;
        `name_call` makes the name that a route has in metrics. Who may try again is told to after
        `retry_after` seconds, for which at most `num_turned_away` count for Serve. No handler takes
        a larger body than `max_body_bytes`, or `max_scoring_bytes` if it scores.
        """
        # Whether whoever answers by this application takes its leave; who knows puts it here.
        self.is_leaving: Callable[[], bool] = bool
        self.max_body_bytes, self.max_scoring_bytes = max_body_bytes, max_scoring_bytes
        self.routes = routes
        self._watch = watch or Watch()
        self._names = {path: name_call(path) for path in routes}
        self.retry_after, self.num_turned_away = retry_after, num_turned_away
        self._has_stars = any("*" in path for path in routes)
        self._rewrite = rewrite

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            return await _live(receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1003})
        return await self.answer(scope, receive, send, is_echoed=self._watch.is_echoed)

    async def answer(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        is_echoed: bool = False,
        connection: Connection | None = None,
    ) -> None:
        """Answer one HTTP request.

        `is_echoed` says that the caller sends the request's id back, as it came. Work that has not
        begun when the `connection` ends is dropped; without one the caller cancels.
        """
        request = Request(scope, receive)
        given = request.headers.get(KEY)
        trace = self._watch.begin(given, "http")
        trace.connection = connection
        reply = GONE
        try:
            reply = await self._answer(request, trace)
            if trace.is_abandoned:
                reply, trace.code = GONE, "client_gone"
                return
            is_sent = is_echoed and given == trace.request_id
            await send_reply(reply, send, "" if is_sent else trace.request_id)
        except asyncio.CancelledError:  # of a client that has left
            reply, trace.code = GONE, "client_gone"
            raise
        finally:
            self._watch.end(trace, reply.status, lambda: _details(request, reply))

    async def _answer(self, request: Request, trace: Trace) -> Reply:
        try:
            return await self._find(request.scope, trace)(request)
        # a request may fail, the server may not; `error_reply` tells the two apart
        except Exception as error:
            reply = error_reply(error)
        if reply.status in TRY_AGAIN:
            reply = replace(reply, headers={"Retry-After": self.retry_after, **reply.headers})
        if has_much_to_come(request):
            # Nobody limits or times any more what comes after an answer.
            return replace(reply, headers={**reply.headers, **CLOSE})
        return reply

    def _find_starred(self, path: str) -> str | None:
        if not self._has_stars or path.count("/") > MAX_PARTS:
            return None
        return next((starred for starred in _star_out(path) if starred in self.routes), None)

    def _find(self, scope: Scope, trace: Trace) -> Handler:
        path = _local_path(scope)
        path = self._rewrite(path) if self._rewrite else path
        route = path if path in self.routes else self._find_starred(path)
        if route is None:
            short = (name for name in self.routes if name.count("/") <= MAX_PARTS_TOLD)
            known = ", ".join(name or "(nothing)" for name in short)
            raise RequestError(
                404, "not_found", f"nothing answers at {shown(scope['path'])}; known here: {known}"
            )
        trace.call, trace.path = self._names[route], scope.get("root_path", "") + route
        methods = self.routes[route]
        method = scope["method"]
        # HEAD is GET whose body the server drops.
        handler = methods.get("GET" if method == "HEAD" else method)
        if handler is None:
            allowed = ", ".join(methods)
            raise RequestError(
                405,
                "method_not_allowed",
                f"{shown(scope['path'])} takes {allowed}, not {shown(method)}",
                {"Allow": allowed},
            )
        return handler


def _star_out(path: str) -> Iterator[str]:
    """Yield the path with one of its parts, from the last to the first, as a star."""
    parts = path.split("/")
    for at in range(len(parts) - 1, 0, -1):
        yield "/".join((*parts[:at], "*", *parts[at + 1 :]))


def _details(request: Request, reply: Reply) -> dict[str, object]:
    """Return what the access log says of a request over HTTP alone."""
    declared = parse_whole(request.headers.get("content-length", ""))
    method = request.scope["method"]
    return {
        "method": method if method in METHODS else "other",
        "bytes_in": declared,  # unknown of a body that comes in chunks
        "bytes_out": len(reply.body),
    }


def _local_path(scope: Scope) -> str:
    """Return the path below the place where the application is mounted, without a final slash."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path.removeprefix(root).rstrip("/")


async def _live(receive: Receive, send: Send) -> None:
    """Nothing is opened or closed here: the model is, by whoever built the application."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
