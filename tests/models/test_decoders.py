"""Which image files become pixels, and what the others are answered."""

from __future__ import annotations

import contextlib
import io
import struct
import time
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.decoders import ImageLimits, decode
from models.errors import ImageDecodeError, ImageError, ImageTooLargeError, ImageTypeError
from models.jpeg_scans import has_single_scan
from models.preprocess import PreprocessSpec, prepare
from tests.collector import collector_off

SPEC = PreprocessSpec(height=64, width=64, resize="stretch")
RED, BLUE = (230, 20, 20), (20, 20, 230)


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """Return the image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def red_over_blue(size: tuple[int, int] = (120, 80)) -> Image.Image:
    """Return a picture whose top half is red and whose bottom half is blue."""
    image = Image.new("RGB", size, BLUE)
    image.paste(RED, (0, 0, size[0], size[1] // 2))
    return image


def is_near(pixel: npt.NDArray[np.uint8], colour: tuple[int, int, int]) -> bool:
    """Say whether a pixel has a colour, but for the compression."""
    return bool(np.abs(pixel.astype(int) - colour).max() < 30)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP"])
def test_every_format_gives_the_same_upright_rgb_picture(file_format: str) -> None:
    pixels = decode(encode(red_over_blue(), file_format))
    assert pixels.shape == (80, 120, 3)
    assert is_near(pixels[10, 60], RED)
    assert is_near(pixels[70, 60], BLUE)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int, file_format: str) -> None:
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = red_over_blue()
    upright.paste((20, 230, 20), (0, 0, 40, 40))  # a green corner tells mirrored from turned
    # 6 is stored lying on its side and has to be turned clockwise: the inverse of the table's turn.
    stored = upright.transpose(turns[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(encode(stored, file_format, exif=exif.tobytes()))
    assert pixels.shape == (80, 120, 3)
    assert is_near(pixels[10, 10], (20, 230, 20))
    assert is_near(pixels[10, 100], RED)
    assert is_near(pixels[70, 60], BLUE)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_every_pixel_mode_becomes_rgb(mode: str) -> None:
    grey = Image.new("L", (40, 30), 255 if mode == "1" else 200)
    if mode == "I;16":
        image = Image.fromarray(np.full((30, 40), 200 << 8, dtype=np.uint16))
    elif mode in ("CMYK", "RGBA"):
        image = grey.convert("RGB").convert(mode)
    else:
        image = grey.convert(mode)
    pixels = decode(encode(image, "TIFF" if mode == "CMYK" else "PNG"))
    assert pixels.shape == (30, 40, 3)
    expected = 255 if mode == "1" else 200
    assert np.abs(pixels.astype(int) - expected).max() <= 2


def test_cmyk_jpeg_keeps_its_colours() -> None:
    pixels = decode(encode(red_over_blue().convert("CMYK"), "JPEG", quality=95))
    assert is_near(pixels[10, 60], RED)
    assert is_near(pixels[70, 60], BLUE)


def test_transparent_parts_become_white() -> None:
    image = Image.new("RGBA", (20, 20), (10, 200, 10, 0))
    image.paste((10, 10, 200, 255), (0, 0, 10, 20))
    pixels = decode(encode(image, "PNG"))
    assert pixels[5, 15].tolist() == [255, 255, 255]
    assert pixels[5, 5].tolist() == [10, 10, 200]


def test_palette_with_transparency_becomes_white_there() -> None:
    image = Image.new("P", (20, 20), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    pixels = decode(encode(image, "PNG", transparency=0))
    assert pixels[5, 5].tolist() == [255, 255, 255]


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_truncated_file_is_refused_with_the_reason(file_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), file_format)
    with pytest.raises(ImageDecodeError, match=file_format):
        decode(data[: len(data) * 2 // 3])


def test_a_jpeg_with_bytes_behind_its_end_is_read() -> None:
    data = encode(red_over_blue(), "JPEG")
    assert np.array_equal(decode(data + b"left behind by a camera"), decode(data))


def test_what_is_not_an_image_is_refused_as_such() -> None:
    with pytest.raises(ImageTypeError, match="JPEG, PNG"):
        decode(b"this is a text file named .jpg")
    with pytest.raises(ImageDecodeError, match="0 bytes"):
        decode(b"")


def test_floating_point_pixels_are_refused() -> None:
    image = Image.fromarray(np.zeros((20, 20), dtype=np.float32))
    with pytest.raises(ImageDecodeError, match="floating-point"):
        decode(encode(image, "TIFF"))


def test_a_huge_png_is_refused_by_its_header_without_a_warning() -> None:
    data = encode(Image.new("1", (20_000, 20_000)), "PNG", compress_level=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageTooLargeError, match="20,000 x 20,000"):
            decode(data)


def test_a_jpeg_of_endless_scans_is_refused_before_it_is_decoded() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200), np.uint8))
    data = encode(image, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    slow = data[:-2] + data[last:-2] * 5_000 + data[-2:]
    with pytest.raises(ImageTooLargeError, match="scans"):
        decode(slow)
    trailer = data + data[last:-2] * 5_000  # a phone's film behind the picture is no scan of it
    assert decode(trailer).shape == (200, 200, 3)
    # The larger the picture, the fewer scans: here 30 are too many at the limit of pixels only.
    some = data[:-2] + data[last:-2] * 30 + data[-2:]
    assert decode(some).shape == (200, 200, 3)
    with pytest.raises(ImageTooLargeError, match="at most 16"):
        decode(some, ImageLimits(max_pixels=200 * 200))


def test_scans_behind_the_only_one_of_a_baseline_jpeg_cost_nothing() -> None:
    """Its header tells that there is one, so the file need not be searched; libjpeg stops there."""
    random = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    plain = encode(Image.fromarray(random), "JPEG")
    assert has_single_scan(plain)
    assert has_single_scan(encode(Image.fromarray(random[..., 0]), "JPEG"))
    assert not has_single_scan(encode(Image.fromarray(random), "JPEG", progressive=True))
    for end in range(0, len(plain), 7):
        has_single_scan(plain[:end])  # raises nothing, wherever a file is cut
    scan = plain[plain.rindex(b"\xff\xda") : -2]
    several = plain[:-2] + scan * 200 + plain[-2:]
    assert has_single_scan(several)
    with collector_off():
        started = time.thread_time()
        with contextlib.suppress(ImageError):
            assert decode(several).shape == (200, 200, 3)
        spent = time.thread_time() - started
    assert spent < 0.2
    # A first scan of one component of three announces more.
    one_of_three = plain.replace(b"\xff\xda\x00\x0c\x03", b"\xff\xda\x00\x08\x01", 1)
    assert one_of_three != plain
    assert not has_single_scan(one_of_three)


def tiled_tiff(size: int, tile: int) -> bytes:
    """Return a grey TIFF of one tile, of which the picture shows the corner."""
    data_at = 8 + 2 + 12 * 9 + 4
    tags = [
        *((256, size), (257, size), (258, 8), (259, 1), (262, 1)),  # grey, not compressed
        *((322, tile), (323, tile), (324, data_at), (325, tile * tile)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4 + tile * tile)


def test_a_small_tiff_with_a_huge_tile_is_refused() -> None:
    data = tiled_tiff(16, 1024)
    assert decode(data).shape == (16, 16, 3)
    with pytest.raises(ImageTooLargeError, match=r"1,024 x 1,024"):
        decode(data, ImageLimits(max_pixels=1000))


@pytest.mark.parametrize(
    ("grey_bits", "expected"),
    [(16, [0, 0, 3, 15, 255]), (12, [0, 6, 62, 255, 255]), (8, [3, 100, 255, 255, 255])],
)
def test_a_camera_of_twelve_bits_in_a_file_of_sixteen_keeps_its_greys(
    grey_bits: int, expected: list[int]
) -> None:
    """Its pictures came out with sixteen greys, nearly black, and nothing was said."""
    buffer = io.BytesIO()
    values = np.array([[3, 100, 1000, 4095, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(buffer, "PNG")
    assert decode(buffer.getvalue(), grey_bits=grey_bits)[0, :, 0].tolist() == expected
    spec = PreprocessSpec(height=16, width=16, resize="stretch", grey_bits=grey_bits)
    assert prepare(buffer.getvalue(), spec)[0, -1, 0] == expected[-1]


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bit_grey_keeps_its_upper_eight(mode: str) -> None:
    values = np.array([[0, 255, 256, 65535]], dtype=np.uint16)
    image = Image.fromarray(values)
    if mode == "I;16B":
        image = Image.frombytes("I;16B", (4, 1), values.astype(">u2").tobytes())
    if mode == "I":
        image = Image.fromarray(values.astype(np.int32))
    got = decode(encode(image, "TIFF"))
    assert got[0, :, 0].tolist() == [0, 0, 1, 255]


def test_too_many_bytes_are_refused_before_decoding() -> None:
    with pytest.raises(ImageTooLargeError, match="more than the limit of 10"):
        decode(encode(red_over_blue(), "PNG"), ImageLimits(max_bytes=10))


def test_a_large_jpeg_is_shrunk_while_decoding_but_never_below_what_is_asked() -> None:
    data = encode(red_over_blue((1600, 1200)), "JPEG")
    assert decode(data, smallest=(150, 150)).shape == (150, 200, 3)
    assert decode(data, smallest=(151, 151)).shape == (300, 400, 3)
    assert decode(data, smallest=(601, 601)).shape == (1200, 1600, 3)


def test_a_lying_jpeg_is_shrunk_by_its_upright_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(red_over_blue((1600, 400)), "JPEG", exif=exif.tobytes())
    assert decode(data, smallest=(800, 200)).shape == (800, 200, 3)


@settings(max_examples=150)
@given(st.data())
def test_mutated_files_give_a_picture_or_an_image_error(data: st.DataObject) -> None:
    file_format = data.draw(st.sampled_from(["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP"]))
    raw = bytearray(encode(red_over_blue((48, 32)), file_format))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):  # anything else that is raised fails the test
        assert prepare(bytes(raw), SPEC, ImageLimits(max_pixels=10**6)).shape == (64, 64, 3)


def test_a_damaged_header_is_described_without_the_words_of_a_library() -> None:
    with pytest.raises(ImageDecodeError, match="damaged PNG: its header cannot be read"):
        decode(b"\x89PNG\r\n\x1a\n" + bytes(60))
