"""The requests of one stream over gRPC, until nothing comes for too long: an open stream holds one
of the places that Serve has, and a replica that leaves waits for it.

Where a stream came by Serve's own proxy, and not straight from HAProxy, it just ends: the proxy
hears of no status behind the last answer.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from serve_app.errors import RequestError

# Without a request: a camera may have nothing to show for minutes. HAProxy would cut a stream off
# soon after (`cluster.resilience`).
IDLE_SECONDS = 300.0
LOOK_SECONDS = 5.0  # between two looks whether the replica leaves
END = object()


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
