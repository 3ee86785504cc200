"""How many parts an image file has beside its pixels, and what Pillow would spend on them.

Pillow looks at every chunk, segment and block of a file in Python, and decodes run-length coded
bitmaps there, while nothing else in the process runs. So 32 MiB of empty parts keep a replica from
answering for half a minute (measured: 3 to 10 us each), and a bitmap of 1 KB that stands for 100
million pixels takes as long and 1 GiB. The parts are counted here before Pillow sees them; the
counting stops at the limit, after some milliseconds. Sound files have tens of parts, long ones
some thousand.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from itertools import islice, repeat

from models.errors import ImageTooLargeError
from models.exif import MARK, MAX_SEGMENTS, jpeg_exif, num_tags

MAX_PARTS = 20_000
PARTS_PER_TAG = 20  # what a tag of a TIFF or of EXIF data costs, in parts
# Of a run-length coded BMP: 0.5 s on one core.
MAX_RUN_PIXELS, MAX_RUN_BYTES = 1_000_000, 2 << 20
RUN_LENGTH = (1, 2)  # BMP: the compressions RLE8 and RLE4
TIFF_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}

# Without the bytes that fill, of which a run would be gone through from each of them.
_JPEG_MARKER = re.compile(rb"\xff[^\xff\x00]")
_START_OF_SCAN, _END = 0xDA, 0xD9
_WEBP_STILL = re.compile(rb"VP8 .{7}\x9d\x01\x2a(?P<size>.{4})", re.DOTALL)


def check_parts(data: bytes, name: str) -> None:
    """Raise `ImageTooLargeError` for a file of that format (`decoders.FORMATS`) that has more parts
    than are looked at.
    """
    walk = _WALKS.get(name)
    if walk is not None:
        _check_count(walk(data), name)
    if name == "BMP":
        _check_runs(data)


def check_segments(data: bytes) -> None:
    """Raise `ImageTooLargeError` for a JPEG of more segments than are looked at, whoever decodes
    it: what they hold matters only to Pillow.
    """
    _check_count(_jpeg_segments(data), "JPEG")


def webp_canvas(data: bytes) -> tuple[int, int]:
    """Return the (height, width) that a WebP states; (0, 0) where it does not. Its decoder takes
    memory for them before it tells.
    """
    if data[12:16] == b"VP8X" and len(data) >= 30:
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return height, width
    if data[12:16] == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    still = _WEBP_STILL.match(data, 12)
    if still is None:
        return 0, 0
    width, height = struct.unpack("<HH", still["size"])
    return height & 0x3FFF, width & 0x3FFF


def _check_count(parts: Iterator[object], name: str) -> None:
    if len(list(islice(parts, MAX_PARTS + 1))) > MAX_PARTS:
        raise ImageTooLargeError(
            f"the {name} has more than {MAX_PARTS:,} parts beside its pixels; save it again "
            "without them"
        )


def _png_parts(data: bytes) -> Iterator[int]:
    position = 8
    while position + 8 <= len(data):
        yield position
        position += 12 + int.from_bytes(data[position : position + 4], "big")


def _jpeg_parts(data: bytes) -> Iterator[int]:
    """Segments before the first scan, and what Pillow looks at within them."""
    num_exif = 0
    yield from range(PARTS_PER_TAG * num_tags(jpeg_exif(data)))
    for segment in _jpeg_segments(data):
        yield 0
        num_exif += segment.startswith(MARK)
        if num_exif > MAX_SEGMENTS:
            raise ImageTooLargeError(
                f"the JPEG has more than {MAX_SEGMENTS} segments of EXIF data; save it again "
                "without them"
            )
        yield from range(segment.count(b"8BIM"))


def _jpeg_segments(data: bytes) -> Iterator[bytes]:
    """What segments before the first scan hold; nothing for each byte between them, which count as
    well, as Pillow reads them one by one.
    """
    position = 2
    while (found := _JPEG_MARKER.search(data, position)) is not None:
        yield from repeat(b"", found.start() - position)
        marker, position = data[found.end() - 1], found.end()
        if marker in (_START_OF_SCAN, _END):
            return
        if 0xD0 <= marker <= 0xD8 or marker == 0x01:  # these have no length
            yield b""
            continue
        size = int.from_bytes(data[position : position + 2], "big")
        yield data[position + 2 : position + size]
        position += max(2, size)


def _gif_parts(data: bytes) -> Iterator[int]:
    """Blocks before the first picture, and the sub-blocks that they are made of."""
    if len(data) < 13:
        return
    position = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    while position < len(data) and data[position] not in b"\x2c\x3b":
        yield position
        if data[position] != 0x21:  # no block: Pillow goes on by one byte
            position += 1
            continue
        position += 2
        while position < len(data) and data[position]:
            yield position
            position += 1 + data[position]
        position += 1


def _tiff_parts(data: bytes) -> Iterator[int]:
    """The tags of the first picture, and its strips or tiles."""
    order = "<" if data[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(f"{order}L", data, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", data, start)
        for tag in range(num_entries):
            yield from range(PARTS_PER_TAG)
            number, kind, count = struct.unpack_from(f"{order}HHL", data, start + 2 + 12 * tag)
            if count * TIFF_TYPE_BYTES.get(kind, 0) <= len(data) and number in (273, 324):
                yield from range(count)
    except struct.error:  # it ends before its tags do; the decoder says so
        return


_WALKS: Mapping[str, Callable[[bytes], Iterator[int]]] = {
    "PNG": _png_parts,
    "JPEG": _jpeg_parts,
    "GIF": _gif_parts,
    "TIFF": _tiff_parts,
}


def _check_runs(data: bytes) -> None:
    if len(data) < 34 or data[14] < 40:
        return
    width, height = struct.unpack_from("<ii", data, 18)
    if int.from_bytes(data[30:34], "little") in RUN_LENGTH and (
        abs(width * height) > MAX_RUN_PIXELS or len(data) > MAX_RUN_BYTES
    ):
        raise ImageTooLargeError(
            f"a run-length coded BMP has at most {MAX_RUN_PIXELS:,} pixels and {MAX_RUN_BYTES:,} "
            f"bytes; this one has {width:,} x {abs(height):,} pixels and {len(data):,} bytes. Save "
            "it as a PNG"
        )
