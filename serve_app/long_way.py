"""What the body of a request may hold that goes the long way, through Serve, which reads a body
ahead to its end: without a bound, whether anybody asks for it or not, and also while a request
waits for its turn.

So no more of a body is handed to Serve than a call of that kind takes. Where the header tells that
more would come, nothing is read: the call refuses it, or does not want it. A body that tells no
length and goes on is refused here.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import error_reply
from serve_app.limits import parse_whole, too_large
from serve_app.replies import send_reply
from serve_app.routing import Api
from serve_app.unread import watch_reading
from serve_app.watch import SCORING

UNREAD_BYTES = 1 << 16  # of bodies that no call reads: of a GET, say


async def answer_bounded(
    app: ASGIApp, api: Api, scope: Scope, receive: Receive, send: Send
) -> None:
    """Let Serve, which is `app`, answer a request; of its body it gets no more than `api` takes."""
    bounded = _Bounded(receive, send, _max_bytes(api, scope), _declared(scope))
    try:
        await app(scope, bounded.receive, bounded.send)
    except asyncio.CancelledError:
        # Serve ends so where a client has left, as it believes of one that is refused here.
        task = asyncio.current_task()
        if not bounded.is_refused or (task is not None and task.cancelling()):
            raise


class _Bounded:
    """One request, as Serve sees it."""

    def __init__(self, receive: Receive, send: Send, max_bytes: int, declared: int) -> None:
        self._receive, self._send = receive, send
        self._max_bytes = max_bytes
        self._declared = declared
        self._num_bytes = 0
        self._is_begun = False  # the answer
        self.is_refused = False

    async def receive(self) -> Message:
        """Return the next part of the request; none that would be too much, for as long as it takes
        to be answered.
        """
        if self._declared > self._max_bytes:
            await asyncio.Event().wait()  # Serve cancels it with the answer
        message = await self._receive()
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes <= self._max_bytes:
            return message
        self.is_refused = True
        return {"type": "http.disconnect"}  # by which Serve gives the call up

    async def send(self, message: Message) -> None:
        """Send a part of the answer; of one that is refused the refusal."""
        if not self.is_refused or self._is_begun:
            self._is_begun = True
            await self._send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                watch_reading(getattr(self._receive, "__self__", None))
        elif message["type"] == "http.response.start":
            size = f"more than {self._max_bytes:,}"
            await send_reply(error_reply(too_large(size, self._max_bytes)), self._send)


def _max_bytes(api: Api, scope: Scope) -> int:
    if scope["method"] not in ("POST", "PUT"):
        return UNREAD_BYTES
    last = scope["path"].rpartition("/")[2]
    return max(api.max_scoring_bytes, api.max_body_bytes) if last in SCORING else api.max_body_bytes


def _declared(scope: Scope) -> int:
    """Return how long a body is by its header, 0 where that is not told."""
    told = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    return parse_whole(told.decode("latin-1")) or 0
