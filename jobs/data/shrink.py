"""Make a large photo smaller before it is packed, where no model needs all of its pixels."""

from __future__ import annotations

import io

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from models.decoders import ImageLimits, decode, read_size, sniff

JPEG_QUALITY = 95


def shrink(data: bytes, max_side: int, limits: ImageLimits) -> bytes:
    """Return the image with its longer side at most `max_side` pixels, upright, as 8-bit RGB.

    What is small enough stays as it is, to the byte, and so do pictures of more than 8 bits, whose
    brightness would suffer. A JPEG stays one (quality 95, colour at full resolution), the rest
    becomes PNG. Raises the errors of `decode`.
    """
    height, width = read_size(data)
    scale = max_side / max(height, width)
    if scale >= 1 or _is_deep(data):
        return data
    size = max(1, round(width * scale)), max(1, round(height * scale))
    pixels = cv2.resize(
        decode(data, limits, smallest=(size[1], size[0])), size, interpolation=cv2.INTER_AREA
    )
    if sniff(data) == "JPEG":
        small: bytes = simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels), quality=JPEG_QUALITY, colorsubsampling="444"
        )
        return small
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _is_deep(data: bytes) -> bool:
    if sniff(data) == "JPEG":
        return False
    with Image.open(io.BytesIO(data)) as image:
        return image.mode.startswith("I") or image.mode == "F"
