"""Multipart bodies to files in memory.

The body is whole and within its limit already, so it is cut at its boundaries in one go. A parser
for streams would look at every byte in Python where somebody means harm: a body full of nearly
boundaries took it 0.25 s per MiB. A body that ends before its final boundary is refused: a file cut
short would otherwise just be missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header

from serve_app.errors import RequestError, bad_request
from serve_app.limits import check_count
from serve_app.shown import shown

MAX_HEADER_BYTES = 8192
MAX_BOUNDARY_BYTES = 70  # RFC 2046, 5.1.1
# What nearly all clients write, read in 1 us a file instead of 15.
USUAL = re.compile(rb' *form-data; name="([^"\\]*)"; filename="([^"\\]*)"')


@dataclass(frozen=True)
class Part:
    """One file: the name of its field, its own name, its bytes."""

    field: str
    file: str
    data: bytes


def read_parts(body: bytes, content_type: str, max_parts: int) -> list[Part]:
    """Return the files of a multipart body, or raise `RequestError` (400, 413)."""
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary or len(boundary) > MAX_BOUNDARY_BYTES:
        raise bad_request(
            f"multipart needs a boundary of 1 to {MAX_BOUNDARY_BYTES} characters in its "
            "Content-Type",
            "bad_multipart",
        )
    opening, delimiter = b"--" + boundary, b"\r\n--" + boundary
    # What precedes the first boundary is a preamble, which is ignored.
    start = len(opening) if body.startswith(opening) else _after(body, delimiter, 0)
    places: list[tuple[int, int]] = []  # of the parts, to be cut only when they are few enough
    while not body.startswith(b"--", start):  # the final boundary; an epilogue is ignored
        if len(places) == max_parts:
            check_count(max_parts + body.count(delimiter, start), max_parts)
        end = _after(body, delimiter, start)
        places.append((start, end - len(delimiter)))
        start = end
    return [_read_part(body, *place) for place in places]


def _after(body: bytes, delimiter: bytes, start: int) -> int:
    """Return where the next delimiter ends."""
    found = body.find(delimiter, start)
    if found < 0:
        raise bad_request(
            "the multipart body ends before its final boundary; the upload was cut short",
            "bad_multipart",
        )
    return found + len(delimiter)


def _read_part(body: bytes, start: int, end: int) -> Part:
    # The line of the boundary ends with CRLF, after which come the headers and an empty line.
    data = body.find(b"\r\n\r\n", start, min(end, start + MAX_HEADER_BYTES)) + 4
    rest_of_line, *lines = body[start : max(start, data - 4)].split(b"\r\n")
    if data < 4 or rest_of_line.strip(b" \t"):
        raise bad_request(
            "malformed multipart body: a boundary is not followed by headers of at most "
            f"{MAX_HEADER_BYTES} bytes and an empty line",
            "bad_multipart",
        )
    field, file = "", None
    for line in lines:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            options = _disposition(value)
            field = options.get(b"name", b"").decode("utf-8", "replace")
            file = options.get(b"filename")
    if file is None:
        raise RequestError(
            400,
            "not_a_file",
            f"the multipart field {shown(field)} is no file; send each image as a file, for "
            "example with curl -F image=@photo.jpg",
        )
    return Part(field, file.decode("utf-8", "replace"), body[data:end])


def _disposition(value: bytes) -> Mapping[bytes, bytes]:
    usual = USUAL.fullmatch(value)
    if usual is not None:
        return {b"name": usual[1], b"filename": usual[2]}
    return parse_options_header(value)[1]
