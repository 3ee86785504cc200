"""Image files to pixels: which formats are read, by what, and within which limits.

JPEG goes through libjpeg-turbo, shrunk by n/8 while it is decoded; every other format goes through
Pillow. EXIF orientation is applied; grey, palette, CMYK, 16-bit and transparent images all become
RGB. The size is read from the header and checked before a pixel is decoded.

A fact one would get wrong: libjpeg only warns about a truncated file and fills the rest with grey.
We decode strictly, and ask Pillow for a second opinion only where the strict decoder complains,
since it also complains about harmless trailing bytes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import simplejpeg

from models import exif
from models.errors import ImageDecodeError, ImageError, ImageTooLargeError, ImageTypeError
from models.file_parts import check_parts, check_segments, webp_canvas
from models.jpeg_scans import check_scans, has_single_scan

if TYPE_CHECKING:
    from types import ModuleType

    from PIL.Image import Image as PillowImage

Pixels = npt.NDArray[np.uint8]

MIB = 1 << 20
MAX_PROFILE = 100_000  # characters of EXIF data that stand in a PNG as text
TIFF_TAG_TILE_WIDTH, TIFF_TAG_TILE_LENGTH = 322, 323
WHITE = (255, 255, 255, 255)
# Of either side. Pillow keeps a pointer for each row: 100 million rows take 1.7 GiB and 18 s.
MAX_SIDE = 1_000_000
BAND_PIXELS = 1 << 20  # that are converted at a time


@dataclass(frozen=True)
class ImageLimits:
    """What one image may cost at most: encoded bytes, and decoded pixels as its header states
    them.
    """

    max_bytes: int = 32 * MIB
    max_pixels: int = 100_000_000

    def __post_init__(self) -> None:
        if self.max_bytes <= 0 or self.max_pixels <= 0:
            raise ValueError(f"image limits must be positive, got {self}")

    def check_bytes(self, size: int) -> None:
        """Raise `ImageTooLargeError` for a file of too many bytes, before it is read."""
        if size > self.max_bytes:
            raise ImageTooLargeError(
                f"the image has {size:,} bytes, more than the limit of {self.max_bytes:,}"
            )


DEFAULT_LIMITS = ImageLimits()

# First bytes, then the name that Pillow uses. WebP is the one format whose mark does not stand
# first.
SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
)
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def sniff(data: bytes | memoryview) -> str | None:
    """Return the format that the first bytes announce, one of `FORMATS`, or None."""
    head = bytes(data[:16])
    for signature, name in SIGNATURES:
        if head.startswith(signature):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return None


def decode(
    data: bytes | bytearray | memoryview,
    limits: ImageLimits = DEFAULT_LIMITS,
    *,
    smallest: tuple[int, int] = (0, 0),
    grey_bits: int = 16,
) -> Pixels:
    """Decode one image file to a uint8 array (h, w, 3), RGB, upright.

    `grey_bits` is how many bits of a 16-bit grey image carry the picture, the lowest ones: cameras
    of 10 or 12 bits write such files. The upper eight of them are kept.

    A JPEG may come back smaller than it is, but never below `smallest` (height, width): the decoder
    then skips work that the caller's resize would throw away. Raises `ImageTypeError`,
    `ImageTooLargeError` or `ImageDecodeError`.
    """
    if not len(data):
        raise ImageDecodeError("the image is empty: 0 bytes")
    limits.check_bytes(len(data))
    view = bytes(data) if not isinstance(data, bytes) else data
    name = sniff(view)
    if name is None:
        raise ImageTypeError(
            f"not an image: the first bytes are {view[:8]!r}; expected one of {', '.join(FORMATS)}"
        )
    try:
        if name == "JPEG":
            return _decode_jpeg(view, limits, smallest)
        return _decode_pillow(view, name, limits, grey_bits)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageTooLargeError(f"{name} needs more memory than there is") from error
    except (
        Exception
    ) as error:  # decoders raise nearly anything on damaged bytes; all of it means one thing
        raise ImageDecodeError(f"damaged {name}: {_first_line(error)}") from error


def read_size(data: bytes) -> tuple[int, int]:
    """Return height and width of an image that `decode` reads, upright, from its header."""
    if sniff(data) == "JPEG":
        height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        turned = exif.orientation(exif.jpeg_exif(data))
    else:
        with _pillow().open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            turned = _orientation(image)
    return (width, height) if turned >= 5 else (height, width)


def _decode_jpeg(data: bytes, limits: ImageLimits, smallest: tuple[int, int]) -> Pixels:
    try:
        height, width, colourspace, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except ValueError as error:
        raise ImageDecodeError(f"damaged JPEG: {_first_line(error)}") from error
    except KeyError as error:  # simplejpeg looks up a colour space of -1
        raise ImageDecodeError("damaged JPEG: its header is not complete") from error
    _check_pixels(height, width, limits)
    if not has_single_scan(data):  # such a header has few parts, and is read in 2 us
        check_segments(data)
        check_scans(data, height * width, limits.max_pixels)
    if colourspace in ("CMYK", "YCCK"):
        return _decode_pillow(data, "JPEG", limits)
    turned = exif.orientation(exif.jpeg_exif(data))
    if turned >= 5:  # the photo lies on its side: what becomes the height is stored as the width
        smallest = (smallest[1], smallest[0])
    factor = _shrink_factor(height, width, smallest)
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            data,
            "RGB",
            min_height=-(-height // factor),
            min_width=-(-width // factor),
            strict=True,
        )
    except ValueError as error:
        return _second_opinion(data, limits, error)
    return _upright(pixels, turned)


def _shrink_factor(height: int, width: int, smallest: tuple[int, int]) -> int:
    """Return the largest of 8, 4, 2 that keeps the photo at or above `smallest`, else 1.

    libjpeg-turbo can shrink by any n/8, but only the powers of two have SIMD code: measured on 400
    x 534 photos, 6/8 is slower than decoding in full (760 against 964 images/s on one core).
    """
    if min(smallest) <= 0:
        return 1
    room = min(height // smallest[0], width // smallest[1])
    return next((factor for factor in (8, 4, 2) if room >= factor), 1)


def _second_opinion(data: bytes, limits: ImageLimits, complaint: ValueError) -> Pixels:
    try:
        return _decode_pillow(data, "JPEG", limits)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever they stumble over
        raise ImageDecodeError(
            f"damaged JPEG: {_first_line(error)} ({_first_line(complaint)})"
        ) from error


def _decode_pillow(data: bytes, name: str, limits: ImageLimits, grey_bits: int = 16) -> Pixels:
    # MPO is what many phones write: a JPEG with a second picture behind the first.
    formats = ("JPEG", "MPO") if name == "JPEG" else (name,)
    check_parts(data, name)  # before Pillow walks through them
    if name == "WEBP":
        _check_pixels(*webp_canvas(data), limits)
    with _pillow().open(io.BytesIO(data), formats=formats) as image:
        _check_pixels(image.height, image.width, limits)
        if name == "TIFF":  # a tile is decoded whole, however little of it the picture shows
            tags = image.tag_v2
            tile = tags.get(TIFF_TAG_TILE_LENGTH, 0), tags.get(TIFF_TAG_TILE_WIDTH, 0)
            _check_pixels(*tile, limits)
        image.load()
        orientation = _orientation(image)
        pixels = _to_pixels(image, grey_bits)
    return _upright(pixels, orientation)


def _to_pixels(image: PillowImage, grey_bits: int) -> Pixels:
    """Convert band by band: whole, a large picture would be in memory up to five times."""
    width, height = image.size
    rows = max(1, BAND_PIXELS // max(1, width))
    if height <= rows:
        return np.ascontiguousarray(np.asarray(_to_rgb(image, grey_bits)))
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(height, top + rows)))
        pixels[top : top + rows] = np.asarray(_to_rgb(band, grey_bits))
    return pixels


def _to_rgb(image: PillowImage, grey_bits: int) -> PillowImage:
    if image.mode.startswith("I;16") or image.mode == "I":
        return _sixteen_to_eight(image, grey_bits)
    if image.mode == "F":
        raise ImageDecodeError(
            "the image has floating-point pixels, whose range is not defined; save it as 8 or 16 "
            "bit"
        )
    if image.has_transparency_data:
        # What a viewer shows: the picture on a white sheet. Dropping alpha would bring up whatever
        # colour the editor left under the transparent part.
        rgba = image.convert("RGBA")
        sheet = _pillow().new("RGBA", rgba.size, WHITE)
        sheet.alpha_composite(rgba)
        return cast("PillowImage", sheet.convert("RGB"))
    return image.convert("RGB")


def _sixteen_to_eight(image: PillowImage, grey_bits: int) -> PillowImage:
    """Keep the upper eight of so many bits of 16-bit grey: the same for every image, so brightness
    stays comparable. What is brighter than they can say is white.
    """
    upper = np.asarray(image) >> (grey_bits - 8)
    np.clip(upper, 0, 255, out=upper)  # of mode I, too: 32 bits, of which files use 16
    grey = _pillow().fromarray(upper.astype(np.uint8))
    return cast("PillowImage", grey.convert("RGB"))


def _check_pixels(height: int, width: int, limits: ImageLimits) -> None:
    if max(height, width) > MAX_SIDE:
        raise ImageTooLargeError(
            f"the image has {width:,} x {height:,} pixels; a side has at most {MAX_SIDE:,}"
        )
    if height * width > limits.max_pixels:
        raise ImageTooLargeError(
            f"the image has {width:,} x {height:,} pixels ({height * width / 1e6:,.0f} million), "
            "more than the "
            f"limit of {limits.max_pixels / 1e6:,.0f} million"
        )


def _orientation(image: PillowImage) -> int:
    """Return the orientation, 1 to 8; broken metadata does not make a picture unusable."""
    if "exif" in image.info:
        return exif.orientation(image.info["exif"])
    if len(image.info.get("Raw profile type exif", "")) > MAX_PROFILE:
        return 1
    try:
        return int(image.getexif().get(exif.ORIENTATION, 1))
    except Exception:  # any error of Pillow's EXIF parser: the metadata is broken, not the picture
        return 1


# EXIF 2.3, tag 274: what to do to the stored pixels so that the picture stands upright.
_TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, 3),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p, 1),
}


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    turn = _TURNS.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


@cache
def _pillow() -> ModuleType:
    from PIL import Image, ImageFile

    # Pillow's own bomb check knows one fixed limit and warns; ours is configured and refuses.
    Image.MAX_IMAGE_PIXELS = None
    # It warns of each tag that is damaged, in words that the file chooses: no matter for a log.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    return Image


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if "cannot identify image file" in text:  # Pillow goes on with the address of a Python object
        return "its header cannot be read"
    return text.splitlines()[0]
