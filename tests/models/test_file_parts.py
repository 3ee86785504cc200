"""Image files made to cost much: each is refused at once. Sound files of many parts are read."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models import exif
from models.decoders import MAX_SIDE, decode
from models.errors import ImageTooLargeError
from models.file_parts import MAX_PARTS, MAX_RUN_PIXELS, webp_canvas
from tests.serve_app.seed_files import (
    COUNTS,
    LONG,
    OFFSETS,
    ROWS,
    SHORT,
    SIZE_TAGS,
    bmp_file,
    png_chunk,
    png_file,
    seed_files,
    tiff_file,
)

ROOT = Path(__file__).parents[2]
MANY = 400_000  # parts
MOST_SECONDS = 1.0  # of work; without the limits the least of them takes 4 s
PIXELS = png_chunk(b"IDAT", zlib.compress(bytes(8 * 25)))
SMALL = (8, 8, 8, 2, 0, 0, 0)


def saved(kind: str, mode: str = "RGB", size: tuple[int, int] = (16, 16), **options: Any) -> bytes:
    """Return a small file of one colour."""
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg_with(segments: bytes, mode: str = "CMYK") -> bytes:
    """Return a JPEG with segments before its own. CMYK is what Pillow decodes."""
    data = saved("JPEG", mode)
    return data[:2] + segments + data[2:]


def exif_segment(payload: bytes = b"") -> bytes:
    """Return a segment of EXIF data."""
    return b"\xff\xe1" + struct.pack(">H", 2 + 6 + len(payload)) + exif.MARK + payload


def gif_with(blocks: bytes) -> bytes:
    """Return a GIF with blocks before its picture."""
    data = saved("GIF", "P", (8, 8))
    start = 13 + (3 << (data[10] & 7) + 1)
    return data[:start] + blocks + data[start:]


def strips(number: int) -> bytes:
    """Return a TIFF of a number of strips of one pixel."""
    tags = {
        SIZE_TAGS["width"]: (SHORT, [1]),
        SIZE_TAGS["height"]: (LONG, [number]),
        ROWS: (SHORT, [1]),
        COUNTS: (LONG, [1] * number),
        OFFSETS + 100: (LONG, [8] * number),
    }
    data = tiff_file(tags, b"\x00", offsets=258)
    # The helper knows one place of data; these all lie at the same one.
    return data.replace(struct.pack("<H", OFFSETS + 100), struct.pack("<H", OFFSETS))


def tags(number: int) -> bytes:
    """Return EXIF data, or the head of a TIFF, that announce a number of tags."""
    each = (struct.pack("<HHLL", 1000 + n % 60_000, 7, 1 << 20, 8) for n in range(number))
    return b"II*\x00\x08\x00\x00\x00" + struct.pack("<H", number) + b"".join(each) + bytes(4)


COSTLY: dict[str, Callable[[], bytes]] = {
    "png words": lambda: png_file(SMALL, png_chunk(b"tEXt", b"a\x00b") * MANY, PIXELS),
    "png unknown chunks": lambda: png_file(SMALL, png_chunk(b"teXt", b"") * MANY, PIXELS),
    "png empty data": lambda: png_file(SMALL, png_chunk(b"IDAT", b"") * MANY, PIXELS),
    "png chunks behind": lambda: png_file(SMALL, PIXELS, png_chunk(b"IDAT", b"") * MANY),
    "jpeg comments": lambda: jpeg_with(b"\xff\xfe\x00\x02" * MANY),
    "jpeg comments, second opinion": lambda: seed_files()["jpeg baseline"][:-40].replace(
        b"\xff\xd8", b"\xff\xd8" + b"\xff\xfe\x00\x02" * MANY, 1
    ),
    "jpeg profiles": lambda: jpeg_with(b"\xff\xe2\x00\x10ICC_PROFILE\x00\x01\x01" * MANY),
    "jpeg blocks": lambda: jpeg_with(
        (b"\xff\xed\xff\xf0Photoshop 3.0\x00" + b"8BIM\x00\x01\x00\x00\x00\x00\x00\x00" * 5456) * 80
    ),
    "jpeg fill": lambda: jpeg_with(b"\xff" * MANY * 8),
    "jpeg exif": lambda: jpeg_with(exif_segment() * MANY),
    "jpeg exif of many tags": lambda: jpeg_with(
        exif_segment(tags(60_000)[:60_000]) + exif_segment(bytes(60_000)) * 12
    ),
    # libjpeg alone would take these; it goes through them in C, without the interpreter's lock.
    "jpeg RGB parts": lambda: jpeg_with(b"\xff\xe0\x00\x02" * MANY, "RGB"),
    "jpeg RGB parts behind exif": lambda: jpeg_with(
        exif_segment() + b"\xff\xe0\x00\x02" * MANY * 20, "RGB"
    ),
    "jpeg RGB fill behind exif": lambda: jpeg_with(exif_segment() + b"\xff" * MANY * 80, "RGB"),
    "jpeg CMYK parts behind exif": lambda: jpeg_with(
        exif_segment() + b"\xff\xe0\x00\x02" * MANY * 20
    ),
    # Neither a marker nor stuffing within a scan: looked for from each of its bytes, if badly done.
    "jpeg fill before a zero": lambda: jpeg_with(b"\xff" * MANY + b"\x00"),
    "jpeg RGB fill before a zero": lambda: jpeg_with(b"\xff" * MANY + b"\x00", "RGB"),
    "jpeg false scans": lambda: jpeg_with(b"\xff\xfe\x00\x04\xff\xda" * MANY * 8),
    "gif comments": lambda: gif_with(b"\x21\xfe\x01A\x00" * MANY),
    "gif blocks": lambda: gif_with(b"\x21\x01\x00" * MANY * 4),
    "gif sub-blocks": lambda: gif_with(b"\x21\x01" + b"\x01A" * MANY * 4 + b"\x00"),
    "gif rubbish": lambda: gif_with(bytes(MANY * 20)),
    "tiff strips": lambda: strips(MANY),
    "tiff tags": lambda: tags(60_000) + bytes(4 << 20),
    "bmp ends of lines": lambda: bmp_file((10_000_000, 10), 8, 1, b"\x01\x01\x00\x00" * 11),
    "bmp jumps": lambda: bmp_file((10_000_000, 10), 8, 1, b"\x00\x02\x00\xff" * 4000),
    "bmp runs": lambda: bmp_file((10_000, 10_000), 8, 1, b"\x01\x01" * MANY * 20),
    "bmp runs of nothing": lambda: bmp_file((8, 8), 8, 1, b"\x09\x00" * MANY * 20),
    "bmp half bytes": lambda: bmp_file((10_000, 10_000), 4, 2, b"\xff\x01" * MANY * 20),
    "png of one column": lambda: png_file((1, 1 << 26, 8, 0, 0, 0, 0), PIXELS),
}


@pytest.mark.parametrize("name", list(COSTLY))
def test_a_file_made_to_cost_much_is_refused_at_once(name: str) -> None:
    data = COSTLY[name]()
    started = time.process_time()
    with pytest.raises(ImageTooLargeError) as refusal:
        decode(data)
    assert time.process_time() - started < MOST_SECONDS
    assert len(str(refusal.value)) < 300


def test_sound_files_of_many_parts_are_read() -> None:
    some = MAX_PARTS // 4
    for data in (
        png_file(SMALL, png_chunk(b"tEXt", b"a\x00b") * some, PIXELS),
        jpeg_with(b"\xff\xfe\x00\x02" * some),
        jpeg_with(exif_segment(bytes(60_000)) * 3, "RGB"),
        gif_with(b"\x21\xfe" + b"\xffA" + b"A" * 254 + b"\x00"),
        gif_with(b"\x21\x01" + b"\x01A" * some + b"\x00"),
        bmp_file((100, 10), 8, 1, b"\x64\x05\x00\x00" * 10 + b"\x00\x01"),
    ):
        assert decode(data).shape[2] == 3


def test_a_long_strip_is_read_up_to_the_longest_side() -> None:
    lines = zlib.compress(bytes(1 + MAX_SIDE))
    strip = png_file((MAX_SIDE, 1, 8, 0, 0, 0, 0), png_chunk(b"IDAT", lines))
    assert decode(strip).shape == (1, MAX_SIDE, 3)
    longer = png_file((MAX_SIDE + 1, 1, 8, 0, 0, 0, 0), png_chunk(b"IDAT", lines))
    with pytest.raises(ImageTooLargeError, match="a side has at most"):
        decode(longer)


def test_a_run_length_coded_bmp_says_what_to_do() -> None:
    side = int(MAX_RUN_PIXELS**0.5) + 1
    with pytest.raises(ImageTooLargeError, match="Save it as a PNG"):
        decode(bmp_file((side, side), 8, 1, b"\x00\x01"))


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_canvas_of_a_webp_is_read_from_its_head(mode: str, lossless: bool) -> None:
    still = saved("WEBP", mode, (37, 21), lossless=lossless)
    frames = [Image.new(mode, (37, 21), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], lossless=lossless)
    assert webp_canvas(still) == webp_canvas(buffer.getvalue()) == (21, 37)


def test_a_webp_of_a_huge_canvas_is_refused_before_there_is_memory_for_it() -> None:
    data = bytearray(seed_files()["webp animated"])
    data[24:30] = struct.pack("<I", 16_000)[:3] * 2
    with pytest.raises(ImageTooLargeError):
        decode(bytes(data))


@pytest.mark.slow
def test_a_large_picture_is_in_memory_twice_and_not_more() -> None:
    side = 6000
    rows = zlib.compress(bytes(side * (1 + 4 * side)), 1)
    data = png_file((side, side, 8, 6, 0, 0, 0), png_chunk(b"IDAT", rows))
    program = """
import sys
from models.decoders import decode
def peak():
    return [int(l.split()[1]) for l in open("/proc/self/status") if "VmHWM" in l][0] / 1024
decode(open(sys.argv[2], "rb").read())
before = peak()
assert decode(open(sys.argv[1], "rb").read()).shape[2] == 3
print(peak() - before)
"""
    # Pillow takes 4 bytes a pixel, the answer 3.
    most = side * side * 7 / (1 << 20) * 1.25
    taken = float(run(program, data, seed_files()["png RGBA"]))
    print(f"{taken:.0f} MiB of at most {most:.0f}")
    assert taken < most


def run(program: str, *files: bytes) -> str:
    """Run a program on files in a process of its own, and return what it prints."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(number) for number in range(len(files))]
        for path, data in zip(paths, files, strict=True):
            path.write_bytes(data)
        command = [sys.executable, "-c", program, *map(str, paths)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_bands_give_the_picture_that_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: data for name, data in seed_files().items() if not name.startswith("jpeg")}
    refused = {"png chunk of a wrong sum", "tiff F"}
    whole = {name: decode(data) for name, data in files.items() if name not in refused}
    monkeypatch.setattr("models.decoders.BAND_PIXELS", 70)  # two or three rows
    for name, pixels in whole.items():
        assert np.array_equal(decode(files[name]), pixels), name


# --- EXIF ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["B", "H", "L"])
@pytest.mark.parametrize("value", [1, 6, 8, 9, 0])
def test_the_orientation_is_read_in_every_form(order: str, kind: str, value: int) -> None:
    number = {"B": 1, "H": 3, "L": 4}[kind]
    tag = struct.pack(f"{order}HHL", exif.ORIENTATION, number, 1)
    stated = struct.pack(f"{order}{kind}", value).ljust(4, b"\x00")
    mark = b"II*\x00" if order == "<" else b"MM\x00*"
    other = struct.pack(f"{order}HHLL", 0x010F, 2, 20, 8)
    data = mark + struct.pack(f"{order}LH", 8, 2) + other + tag + stated
    expected = value if 1 <= value <= 8 else 1
    assert exif.orientation(data) == exif.orientation(exif.MARK + data) == expected
    assert exif.num_tags(data) == 2


def test_exif_data_that_announce_many_tags_are_no_reason_to_refuse_a_photo() -> None:
    photo = saved("JPEG", "RGB", progressive=True)
    segment = exif_segment(b"II*\x00\x08\x00\x00\x00\xff\xff" + bytes(20))
    assert decode(photo[:2] + segment + photo[2:]).shape == (16, 16, 3)


def test_exif_data_in_several_segments_are_joined() -> None:
    made = Image.Exif()
    made[exif.ORIENTATION] = 6
    payload = made.tobytes().removeprefix(exif.MARK)
    data = jpeg_with(exif_segment(payload[:9]) + exif_segment(payload[9:]), "RGB")
    assert exif.orientation(exif.jpeg_exif(data)) == 6
    with Image.open(io.BytesIO(data)) as image:
        assert image.getexif()[exif.ORIENTATION] == 6


@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda data: b"II*\x00\x08\x00" + data))
def test_broken_exif_data_are_no_reason_to_refuse_a_picture(data: bytes) -> None:
    assert exif.orientation(data) in range(1, 9)
    assert exif.num_tags(data) >= 0
    segment = exif_segment(data)
    assert exif.jpeg_exif(b"\xff\xd8" + segment) == data
    assert data.startswith(exif.jpeg_exif((b"\xff\xd8" + segment)[:-1]))
