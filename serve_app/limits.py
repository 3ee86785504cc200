"""Reading a request's body without ever holding more of it than is allowed.

The declared length is checked before a byte is read. A body without one is counted while it comes,
and the reading stops at the limit. Serve itself has no such limit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.requests import Request

from serve_app.errors import RequestError, bad_request

# The rest of a refused body is not worth reading: the connection ends with the answer.
CLOSE = {"Connection": "close"}


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the whole body, or raise `RequestError` (413) when it is larger than allowed."""
    chunks = [chunk async for chunk in limited_stream(request, max_bytes)]
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def limited_stream(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """Yield the body as it comes, or raise `RequestError` (413) at the limit."""
    _check_encoding(request)
    _check_declared_length(request, max_bytes)
    received = 0
    async for chunk in request.stream():
        if not chunk:
            continue
        received += len(chunk)
        if received > max_bytes:
            raise _too_large(f"more than {max_bytes:,}", max_bytes)
        yield chunk


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


def _check_declared_length(request: Request, max_bytes: int) -> None:
    declared = request.headers.get("content-length")
    if declared is None:
        return
    if not declared.isdecimal():
        raise bad_request(f"Content-Length must be a whole number, got {declared!r}")
    if int(declared) > max_bytes:
        raise _too_large(f"{int(declared):,}", max_bytes)


def _check_encoding(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise RequestError(
            415,
            "content_encoding",
            f"the body is compressed with {encoding!r}; send it as it is (image files are "
            "compressed already)",
            CLOSE,
        )


def _too_large(size: str, max_bytes: int) -> RequestError:
    return RequestError(
        413,
        "body_too_large",
        f"the body has {size} bytes; the limit is {max_bytes:,} per request",
        CLOSE,
    )
