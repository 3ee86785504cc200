"""Bodies of infer calls compressed with gzip or deflate, as Triton's clients can send and ask for.

Image files gain nothing by it, tensors little. What a body unpacks to is bounded while it is
unpacked, so a small body cannot become a large one; and it is unpacked in a thread, since that
takes a while.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping
from dataclasses import replace

from serve_app.errors import RequestError, bad_request
from serve_app.replies import Reply

# What HTTP calls deflate is zlib's own form. The number tells zlib which header comes.
WINDOWS: Mapping[str, int] = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
LEVEL = 1  # floats hardly shrink, so no time is spent on them


async def unpack(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Return a compressed body as it was. Raises `RequestError` (400, 413) if it is damaged, or
    larger than `max_bytes` when unpacked.
    """
    return await asyncio.to_thread(_unpack, body, encoding, max_bytes)


async def compressed_reply(reply: Reply, accept_encoding: str) -> Reply:
    """Return the answer compressed where a client asks for exactly one encoding: browsers and
    libraries that accept several by habit are better served with fewer milliseconds.
    """
    encoding = accept_encoding.strip().lower()
    if encoding not in WINDOWS:
        return reply
    body = await asyncio.to_thread(_pack, reply.body, WINDOWS[encoding])
    return replace(reply, body=body, headers={**reply.headers, "Content-Encoding": encoding})


def _unpack(body: bytes, encoding: str, max_bytes: int) -> bytes:
    unpacking = zlib.decompressobj(WINDOWS[encoding])
    try:
        whole = unpacking.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise bad_request(f"the body is not valid {encoding}: {error}", "bad_encoding") from error
    if len(whole) > max_bytes:
        raise RequestError(
            413,
            "body_too_large",
            f"the body has more than {max_bytes:,} bytes when unpacked; that is the limit per "
            "request",
        )
    if not unpacking.eof or unpacking.unused_data:
        where = "goes on after" if unpacking.eof else "breaks off before"
        raise bad_request(f"the body {where} the end of its {encoding} data", "bad_encoding")
    return whole


def _pack(body: bytes, window: int) -> bytes:
    packing = zlib.compressobj(LEVEL, wbits=window)
    return packing.compress(body) + packing.flush()
