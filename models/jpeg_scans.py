"""How many scans a JPEG has: what a progressive one costs beside its pixels.

Every scan is decoded over the whole picture (9.5 ms at 4 million pixels, measured on one core), and
a scan that says nothing takes 14 bytes, so a file of 30 kB can keep a core busy for minutes.
Encoders write ten or so. Most photos are baseline, of a single scan, which their header tells.
"""

from __future__ import annotations

import re

from models.errors import ImageTooLargeError

START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
FRAMES = (0xC0, 0xC1)  # baseline and extended sequential
PLAIN = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}  # tables, restart interval, comment, APPn
MAX_HEADER_SEGMENTS = 200  # an ICC profile may have dozens
MAX_SCANS = 100
MAX_MARKERS = 20_000  # looked at; 32 MiB can hold millions, at 1 us each
ALWAYS_SCANS = 16  # taken even at the pixel limit
# Any marker but those that stand within the data of a scan: stuffing, fill, restarts.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def check_scans(data: bytes, num_pixels: int, max_pixels: int) -> None:
    """Raise `ImageTooLargeError` for more scans than are taken at that size: 100 of a small
    picture, 16 at the pixel limit.

    The whole file is read: 2 ms for a photo of 12 megapixels, beside 29 ms of decoding. One that
    `has_single_scan` need not be.
    """
    allowed = min(MAX_SCANS, ALWAYS_SCANS * max(1, max_pixels // max(1, num_pixels)))
    # The two bytes may stand in metadata or behind the picture too, but counting well takes longer.
    if data.count(bytes([0xFF, START_OF_SCAN])) <= allowed:
        return
    num_scans = count_scans(data)
    if num_scans > allowed:
        raise ImageTooLargeError(
            f"the JPEG has {num_scans:,} scans; at most {allowed} are taken at its size. Save it "
            "again as a baseline JPEG"
        )


def has_single_scan(data: bytes) -> bool:
    """Tell from the header whether a decoder reads one scan and no more: a sequential frame whose
    first scan holds all components. libjpeg takes any scan after it for damage (`JERR_EOI_EXPECTED`
    in its jdinput.c). False where the header is not plain.
    """
    num_components, position = 0, 2
    for _ in range(MAX_HEADER_SEGMENTS):
        segment = data[position : position + 10]
        if len(segment) < 10 or segment[0] != 0xFF:
            return False
        marker, length = segment[1], segment[2] << 8 | segment[3]
        if marker == START_OF_SCAN:
            return 0 < num_components == segment[4]
        if marker in FRAMES:
            num_components = segment[9]
        elif marker not in PLAIN:
            return False
        position += 2 + length
    return False


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
