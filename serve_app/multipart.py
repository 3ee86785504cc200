"""Multipart bodies to files in memory.

The body is whole and within its limit already, so nothing needs to be spooled to a disk. A body
that ends before its final boundary is refused: a file cut short would otherwise just be missing.
"""

from __future__ import annotations

from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header

from serve_app.errors import RequestError, bad_request
from serve_app.limits import check_count

MAX_HEADER_BYTES = 8192


@dataclass(frozen=True)
class Part:
    """One file: the name of its field, its own name, its bytes."""

    field: str
    file: str
    data: bytes


def read_parts(body: bytes, content_type: str, max_parts: int) -> list[Part]:
    """Return the files of a multipart body, or raise `RequestError` (400, 413)."""
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise bad_request("multipart without a boundary in its Content-Type", "bad_multipart")
    reader = _Reader(max_parts)
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": reader.begin,
            "on_header_field": reader.header_name,
            "on_header_value": reader.header_value,
            "on_header_end": reader.header_end,
            "on_headers_finished": reader.headers_finished,
            "on_part_data": reader.data,
            "on_part_end": reader.end,
        },
    )
    try:
        parser.write(body)
    except FormParserError as error:
        raise bad_request(f"malformed multipart body: {error}", "bad_multipart") from error
    if parser.state != MultipartState.END:
        raise bad_request(
            "the multipart body ends before its final boundary; the upload was cut short",
            "bad_multipart",
        )
    return reader.parts


class _Reader:
    """Collects what the parser reports."""

    def __init__(self, max_parts: int) -> None:
        self.parts: list[Part] = []
        self._max_parts = max_parts
        self._name, self._value, self._disposition = b"", b"", b""
        self._field, self._file = "", ""
        self._chunks: list[bytes] = []
        self._num_header_bytes = 0

    def begin(self) -> None:
        check_count(len(self.parts) + 1, self._max_parts)
        self._disposition = b""
        self._chunks = []
        self._num_header_bytes = 0

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]
        self._count(end - start)

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._count(end - start)

    def header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name, self._value = b"", b""

    def headers_finished(self) -> None:
        options = parse_options_header(self._disposition)[1]
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" not in options:
            raise RequestError(
                400,
                "not_a_file",
                f"the multipart field {self._field!r} is no file; send each image as a file, for "
                "example with curl -F image=@photo.jpg",
            )
        self._file = options[b"filename"].decode("utf-8", "replace")

    def data(self, data: bytes, start: int, end: int) -> None:
        self._chunks.append(data[start:end])

    def end(self) -> None:
        self.parts.append(Part(self._field, self._file, b"".join(self._chunks)))

    def _count(self, num_bytes: int) -> None:
        self._num_header_bytes += num_bytes
        if self._num_header_bytes > MAX_HEADER_BYTES:
            raise bad_request(
                f"the headers of one multipart part have more than {MAX_HEADER_BYTES} bytes",
                "bad_multipart",
            )
