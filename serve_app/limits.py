"""Reading a request's body without ever holding more of it than is allowed.

The declared length is checked before a byte is read. A body without one is counted while it comes,
and the reading stops at the limit. Serve itself has no such limit.
"""

from __future__ import annotations

import asyncio
import reprlib
from collections.abc import Collection

from serve_app.alarm import Alarm
from serve_app.compression import WINDOWS, unpack
from serve_app.errors import RequestError, bad_request
from serve_app.request import Request

CLIENT_GONE = 499  # nginx's status; nobody reads it but the access log
# The rest of a refused body is not worth reading: the connection ends with the answer.
CLOSE = {"Connection": "close"}
LARGE_BODY = 1 << 20  # bytes; what is smaller is read to its end, and the connection kept
MAX_DIGITS = 19  # of a length in a header
# What comes more slowly than any network is not meant to arrive: who sends a byte a second would
# else be waited for as long as the largest body takes.
LOOK_SECONDS = 10.0
SLOWEST = 1000.0  # bytes a second, between two looks


async def read_body(
    request: Request, max_bytes: int, seconds: float, *, may_be_compressed: bool = False
) -> bytes:
    """Return the whole body, or raise `RequestError`: 413 when it is larger than allowed, 408 when
    it takes longer to arrive, or comes at less than `SLOWEST`, 499 when the client leaves.
    """
    encoding = _encoding(request, known=WINDOWS if may_be_compressed else ())
    _check_declared_length(request, max_bytes)
    chunks: list[bytes] = []
    received, seen, is_whole = 0, 0, False
    now = asyncio.get_running_loop().time
    end = now() + seconds
    try:
        with Alarm() as alarm:
            alarm.set(min(seconds, LOOK_SECONDS))
            while not is_whole:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise RequestError(CLIENT_GONE, "client_gone", "the client left while sending")
                chunk, is_whole = message.get("body", b""), not message.get("more_body", False)
                received += len(chunk)
                if received > max_bytes:
                    raise too_large(f"more than {max_bytes:,}", max_bytes)
                chunks.append(chunk)
                if received - seen >= SLOWEST * LOOK_SECONDS and not is_whole:
                    seen = received
                    alarm.set(min(end - now(), LOOK_SECONDS))
    except TimeoutError as error:
        raise RequestError(
            408,
            "upload_timeout",
            f"the body did not arrive within {seconds:g} s, or came at less than {SLOWEST:,.0f} "
            f"bytes a second ({received:,} came); send smaller images, or raise "
            "limits.upload_seconds in the serve file",
            CLOSE,
        ) from error
    request.is_whole = True
    body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    if not encoding:
        return body
    unpacked = await unpack(body, encoding, max_bytes)
    if request.note_size is not None:
        request.note_size(len(unpacked))
    return unpacked


def has_much_to_come(request: Request) -> bool:
    """Whether a body is still to come that is large, or of unknown length."""
    if request.is_whole:
        return False
    declared = request.headers.get("content-length")
    if declared is None:
        return "transfer-encoding" in request.headers
    length = parse_whole(declared)
    return length is None or length > LARGE_BODY


def check_count(num_images: int, max_images: int) -> None:
    """Raise `RequestError` for a request with no image, or with too many."""
    if num_images == 0:
        raise bad_request("the request holds no image", "no_image")
    if num_images > max_images:
        raise RequestError(
            413,
            "too_many_images",
            f"the request holds {num_images} images; the limit is {max_images} per request, so "
            "split it",
        )


def parse_whole(text: str) -> int | None:
    """Return the whole number that a header states, or None where it states none that is
    plausible.
    """
    text = text.strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < MAX_DIGITS else None


def too_large(size: str, max_bytes: int) -> RequestError:
    """Return the error for a body of so many bytes, in words."""
    return RequestError(
        413,
        "body_too_large",
        f"the body has {size} bytes; the limit is {max_bytes:,} per request",
        CLOSE,
    )


def _check_declared_length(request: Request, max_bytes: int) -> None:
    declared = request.headers.get("content-length")
    if declared is None:
        return
    length = parse_whole(declared)
    if length is None:
        raise bad_request(f"Content-Length must be a whole number, got {reprlib.repr(declared)}")
    if length > max_bytes:
        raise too_large(f"{length:,}", max_bytes)


def _encoding(request: Request, known: Collection[str]) -> str:
    """Return how the body is compressed, "" if it is not."""
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return ""
    if encoding not in known:
        advice = f"use {' or '.join(known)}, or send" if known else "send"
        raise RequestError(
            415,
            "content_encoding",
            f"the body is compressed with {reprlib.repr(encoding)}; {advice} it as it is (image "
            "files are compressed already)",
            CLOSE,
        )
    return encoding
