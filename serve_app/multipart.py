"""Multipart bodies to files in memory.

The body is whole and within its limit already, so it is cut at its boundaries in one go. A parser
for streams would look at every byte in Python where somebody means harm: a body full of nearly
boundaries took it 0.25 s per MiB. A body that ends before its final boundary is refused: a file cut
short would otherwise just be missing.
"""

from __future__ import annotations

from dataclasses import dataclass

from python_multipart.multipart import parse_options_header

from serve_app.errors import RequestError, bad_request
from serve_app.limits import check_count

MAX_HEADER_BYTES = 8192
MAX_BOUNDARY_BYTES = 70  # RFC 2046, 5.1.1


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
    num_boundaries = body.count(delimiter) + body.startswith(opening)
    if num_boundaries > max_parts + 1:  # before anything is cut; the last one ends the body
        check_count(num_boundaries - 1, max_parts)
    # What precedes the first boundary is a preamble, which is ignored.
    pieces = body.removeprefix(opening).split(delimiter)
    parts: list[Part] = []
    for piece in pieces if body.startswith(opening) else pieces[1:]:
        if piece.startswith(b"--"):  # the final boundary; an epilogue is ignored
            return parts
        parts.append(_read_part(piece))
    raise bad_request(
        "the multipart body ends before its final boundary; the upload was cut short",
        "bad_multipart",
    )


def _read_part(piece: bytes) -> Part:
    # The line of the boundary ends with CRLF, after which come the headers and an empty line.
    end = piece.find(b"\r\n\r\n", 0, MAX_HEADER_BYTES)
    if end < 0 or piece[: piece.index(b"\r\n")].strip(b" \t"):
        raise bad_request(
            "malformed multipart body: a boundary is not followed by headers of at most "
            f"{MAX_HEADER_BYTES} bytes and an empty line",
            "bad_multipart",
        )
    field, file = "", None
    for line in piece[:end].split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            options = parse_options_header(value)[1]
            field = options.get(b"name", b"").decode("utf-8", "replace")
            file = options.get(b"filename")
    if file is None:
        raise RequestError(
            400,
            "not_a_file",
            f"the multipart field {field!r} is no file; send each image as a file, for "
            "example with curl -F image=@photo.jpg",
        )
    return Part(field, file.decode("utf-8", "replace"), piece[end + 4 :])
