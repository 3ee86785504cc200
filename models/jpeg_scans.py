"""How many scans a JPEG has: what a progressive one costs beside its pixels.

Every scan is decoded over the whole picture (9.5 ms at 4 million pixels, measured on one core), and
a scan that says nothing takes 14 bytes, so a file of 30 kB can keep a core busy for minutes.
Encoders write ten or so.
"""

from __future__ import annotations

import re

from models.errors import ImageTooLargeError

START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
MAX_SCANS = 100
MAX_MARKERS = 20_000  # looked at; 32 MiB can hold millions, at 1 us each
ALWAYS_SCANS = 16  # taken even at the pixel limit
# Any marker but those that stand within the data of a scan: stuffing, fill, restarts.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def check_scans(data: bytes, num_pixels: int, max_pixels: int) -> None:
    """Raise `ImageTooLargeError` for more scans than are taken at that size: 100 of a small
    picture, 16 at the pixel limit.
    """
    allowed = min(MAX_SCANS, ALWAYS_SCANS * max(1, max_pixels // max(1, num_pixels)))
    # The two bytes may stand in metadata or behind the picture too, but counting well takes longer
    # (this: 0.04 ms for 36 kB, beside 1 ms of decoding).
    if data.count(bytes([0xFF, START_OF_SCAN])) <= allowed:
        return
    num_scans = count_scans(data)
    if num_scans > allowed:
        raise ImageTooLargeError(
            f"the JPEG has {num_scans:,} scans; at most {allowed} are taken at its size. Save it "
            "again as a baseline JPEG"
        )


def count_scans(data: bytes) -> int:
    """Walk through the segments of a JPEG up to its end and count the scans. Raises
    `ImageTooLargeError` for one of countless segments.
    """
    num_scans, num_markers, position = 0, 0, 2
    while (found := _MARKER.search(data, position)) is not None:
        marker, position = data[found.start() + 1], found.end()
        if marker == END_OF_IMAGE:
            break
        num_markers += 1
        if num_markers > MAX_MARKERS:
            raise ImageTooLargeError(
                f"the JPEG has more than {MAX_MARKERS:,} segments; save it again without them"
            )
        num_scans += marker == START_OF_SCAN
        position += int.from_bytes(data[position : position + 2], "big")
    return num_scans
