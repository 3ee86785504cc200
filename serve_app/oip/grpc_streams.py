"""The requests of one stream over gRPC, until nothing comes for too long: an open stream holds one
of the places that Serve has, and a replica that leaves waits for it.

Where a stream came by Serve's own proxy, and not straight from HAProxy, it just ends: the proxy
hears of no status behind the last answer.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from serve_app.errors import RequestError

# Without a request: a camera may have nothing to show for minutes. HAProxy would cut a stream off
# soon after (`cluster.resilience`).
IDLE_SECONDS = 300.0
LOOK_SECONDS = 5.0  # between two looks whether the replica leaves
# Open at a time: half of the room that Serve has beside scoring requests (`serve_app.app.ROOM`), so
# that streams on which nothing comes keep nobody from asking whether the replica is ready.
MAX_STREAMS = 500
END = object()


class Streams:
    """How many streams one replica has open."""

    def __init__(self) -> None:
        self._num_open = 0

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold a place for one. Raises `RequestError` (429)."""
        if self._num_open >= MAX_STREAMS:
            raise RequestError(
                429,
                "queue_full",
                f"this replica has {MAX_STREAMS} streams open already; close one, or send requests "
                "by ModelInfer",
            )
        self._num_open += 1
        try:
            yield
        finally:
            self._num_open -= 1


async def requests_of(
    stream: AsyncIterator[Any], is_leaving: Callable[[], bool]
) -> AsyncIterator[Any]:
    """Yield the requests. Raises `RequestError` where none came for `IDLE_SECONDS` (408), or since
    the replica leaves (503): between two requests, however soon one follows the other.
    """
    closes_at = math.inf
    while (request := await _next(stream, is_leaving)) is not END:
        yield request
        if is_leaving():
            now = time.monotonic()
            closes_at = min(closes_at, now + LOOK_SECONDS)
            if now >= closes_at:
                raise _closed()


async def _next(stream: AsyncIterator[Any], is_leaving: Callable[[], bool]) -> Any:
    coming = asyncio.ensure_future(_next_or_end(stream))
    end = time.monotonic() + IDLE_SECONDS
    try:
        while not (await asyncio.wait([coming], timeout=LOOK_SECONDS))[0]:
            if is_leaving():
                raise _closed()
            if time.monotonic() > end:
                raise RequestError(
                    408,
                    "idle_stream",
                    f"no request came for {IDLE_SECONDS:g} s; open another stream",
                )
        return coming.result()
    finally:
        coming.cancel()


async def _next_or_end(stream: AsyncIterator[Any]) -> Any:
    return await anext(stream, END)


def _closed() -> RequestError:
    return RequestError(503, "closed", "this replica leaves; open another stream")
