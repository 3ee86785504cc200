"""Which way up a photo is, as its EXIF data say: the one tag that is read of them.

Read here and not by Pillow, which reads all tags there are: 65,000 of them, in 1 MiB, take seconds
in which nothing else of the process runs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

ORIENTATION = 0x0112  # EXIF 2.3
MAX_TAGS = 1000  # that are looked at; cameras write tens
MAX_SEGMENTS = 16  # of a JPEG, 64 KiB each; Pillow, too, joins several
# From one part of a JPEG to the next, at 0.3 us each: 32 MiB can hold millions. A file of more is
# refused (`file_parts`).
MAX_STEPS = 20_000
LOOKED_AT = 4 << 16  # bytes of a JPEG in which its EXIF data begin
MARK = b"Exif\x00\x00"
# Types of a value that stands within its tag: unsigned numbers of 1, 2 and 4 bytes.
_NUMBERS = {1: "B", 3: "H", 4: "L"}
_ORDERS = {b"II": "<", b"MM": ">"}


def orientation(exif: bytes) -> int:
    """Return the orientation, 1 to 8; 1 where there is none or the data are broken."""
    try:
        for order, tag, kind, count, value in _tags(exif):
            if tag == ORIENTATION:
                found = int(struct.unpack_from(f"{order}{_NUMBERS[kind]}", value)[0])
                return found if count == 1 and 1 <= found <= 8 else 1
    except (struct.error, KeyError):
        pass
    return 1


def num_tags(exif: bytes) -> int:
    """Return how many tags EXIF data announce; 0 where they are broken."""
    try:
        return _head(exif)[2]
    except (struct.error, KeyError):
        return 0


def jpeg_exif(data: bytes) -> bytes:
    """Return the EXIF data of a JPEG, without their mark; nothing where there are none."""
    if data.find(MARK, 0, LOOKED_AT) < 0:  # as in most photos
        return b""
    parts: list[bytes] = []
    position = 2
    for _ in range(MAX_STEPS):
        if len(parts) == MAX_SEGMENTS or data[position : position + 1] != b"\xff":
            break
        marker = data[position + 1 : position + 2]
        if marker == b"\xff":  # a byte that fills
            position += 1
            continue
        if not marker or marker in b"\xd9\xda":
            break
        size = int.from_bytes(data[position + 2 : position + 4], "big")
        segment = data[position + 4 : position + 2 + size]
        if marker == b"\xe1" and segment.startswith(MARK):
            parts.append(segment.removeprefix(MARK))
        position += 2 + max(2, size)
    return b"".join(parts)


def _tags(exif: bytes) -> Iterator[tuple[str, int, int, int, bytes]]:
    """Yield byte order, tag, type, count and the four bytes of the value or its place."""
    order, start, count, exif = _head(exif)
    for number in range(min(count, MAX_TAGS)):
        yield order, *struct.unpack_from(f"{order}HHL4s", exif, start + 2 + 12 * number)


def _head(exif: bytes) -> tuple[str, int, int, bytes]:
    """Return byte order, place and number of the tags, and the data without a mark."""
    exif = exif.removeprefix(MARK)
    order = _ORDERS[exif[:2]]
    (start,) = struct.unpack_from(f"{order}L", exif, 4)
    return order, start, struct.unpack_from(f"{order}H", exif, start)[0], exif
