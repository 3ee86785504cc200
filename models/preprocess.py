"""From the bytes of an image file to the border tensor, uint8 H x W x 3 in RGB.

`prepare` is the one function that decodes, resizes and crops, in training, evaluation, batch
scoring and serving alike, so that they cannot drift apart. Normalisation is not here: it is inside
the exported graph.

Shape legend: H, W are the model's input height and width; h, w those of the decoded photo.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from models.decoders import DEFAULT_LIMITS, ImageLimits, decode
from models.errors import ImageDecodeError

if TYPE_CHECKING:
    from types import ModuleType

Image = npt.NDArray[np.uint8]
Box = Sequence[int]  # left, top, right, bottom in pixels of the upright image
LONGEST_STRIP = 4  # times the model's input; no camera takes photos of a more extreme aspect

__all__ = ["DEFAULT_LIMITS", "Box", "Image", "ImageLimits", "PreprocessSpec", "prepare", "resize"]


class PreprocessSpec(BaseModel):
    """How an image becomes the model's input; written into the bundle's manifest.

    `stretch` scales both sides to the input size and may change the aspect; `crop` scales the
    shorter side to `size / crop_ratio` and cuts out the centre; `pad` scales the longer side to the
    size and fills the rest with grey, so that nothing at the edge of a part is lost.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # `bilinear` and `bicubic` average whole factors first, so neither aliases; `area` averages
    # throughout.
    height: int = Field(224, ge=16, le=4096)
    width: int = Field(224, ge=16, le=4096)
    resize: Literal["stretch", "crop", "pad"] = "crop"
    interpolation: Literal["bilinear", "area", "bicubic"] = "bilinear"
    crop_ratio: float = Field(0.875, gt=0.2, le=1.0)
    pad_value: int = Field(114, ge=0, le=255)
    colour: Literal["rgb"] = "rgb"
    # Of 16-bit grey files: how many bits the camera has. With 16, the pictures of a camera of 12
    # bits would have 16 greys, all of them nearly black.
    grey_bits: int = Field(16, ge=8, le=16)


def prepare(
    data: bytes | bytearray | memoryview,
    spec: PreprocessSpec,
    limits: ImageLimits = DEFAULT_LIMITS,
    box: Box | None = None,
    out: Image | None = None,
) -> Image:
    """Decode one encoded image, cut out `box` where there is one, and bring it to the model's size.

    Returns a contiguous uint8 array of shape (H, W, 3), RGB: `out` where one is given. Raises
    `ImageTypeError`, `ImageTooLargeError` or `ImageDecodeError` (also for a box outside of the
    image); never anything else, whatever the bytes are.
    """
    if box is not None:
        return resize(_cut(decode(data, limits, grey_bits=spec.grey_bits), box), spec, out)
    size = _scaled_size(spec)
    return resize(decode(data, limits, smallest=size, grey_bits=spec.grey_bits), spec, out)


def _cut(image: Image, box: Box) -> Image:
    left, top, right, bottom = box
    height, width = image.shape[:2]
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ImageDecodeError(
            f"the box {left}, {top}, {right}, {bottom} (left, top, right, bottom) does not lie in "
            f"the image of {width} x {height} pixels"
        )
    return image[top:bottom, left:right]


def resize(image: Image, spec: PreprocessSpec, out: Image | None = None) -> Image:
    """Bring a decoded image (h, w, 3) to the model's size (H, W, 3) by the rule of the spec; into
    `out` where that is given.
    """
    resized = _resized(image, spec)
    if out is None:
        return np.ascontiguousarray(resized)
    out[:] = resized
    return out


def _resized(image: Image, spec: PreprocessSpec) -> Image:
    height, width = spec.height, spec.width
    if image.shape[:2] == (height, width) and spec.resize != "crop":
        return image
    if spec.resize == "stretch":
        return _scale(image, height, width, spec.interpolation)
    if spec.resize == "crop":
        return _crop(image, spec)
    return _pad(image, spec)


def _scaled_size(spec: PreprocessSpec) -> tuple[int, int]:
    """Return the (height, width) below which a JPEG must not be shrunk while it is decoded."""
    if spec.resize == "crop":
        return math.ceil(spec.height / spec.crop_ratio), math.ceil(spec.width / spec.crop_ratio)
    return spec.height, spec.width


def _crop(image: Image, spec: PreprocessSpec) -> Image:
    target_h, target_w = _scaled_size(spec)
    image = _centre_of_strip(image, max(target_h / image.shape[0], target_w / image.shape[1]), spec)
    h, w = image.shape[:2]
    scale = max(target_h / h, target_w / w)
    scaled = _scale(
        image,
        max(spec.height, round(h * scale)),
        max(spec.width, round(w * scale)),
        spec.interpolation,
    )
    top = (scaled.shape[0] - spec.height) // 2
    left = (scaled.shape[1] - spec.width) // 2
    return scaled[top : top + spec.height, left : left + spec.width]


def _centre_of_strip(image: Image, scale: float, spec: PreprocessSpec) -> Image:
    """Cut a strip of extreme aspect around what the crop will keep, before it is scaled.

    A photo of 20,000 x 1 pixels would otherwise become 5 million x 256 first: gigabytes, out of a
    file of a hundred bytes.
    """
    h, w = image.shape[:2]
    most_h = math.ceil(LONGEST_STRIP * spec.height / scale)
    most_w = math.ceil(LONGEST_STRIP * spec.width / scale)
    top, left = max(0, h - most_h) // 2, max(0, w - most_w) // 2
    return image[top : top + most_h, left : left + most_w]


def _pad(image: Image, spec: PreprocessSpec) -> Image:
    h, w = image.shape[:2]
    scale = min(spec.height / h, spec.width / w)
    new_h = min(spec.height, max(1, round(h * scale)))
    new_w = min(spec.width, max(1, round(w * scale)))
    canvas = np.full((spec.height, spec.width, 3), spec.pad_value, dtype=np.uint8)
    top, left = (spec.height - new_h) // 2, (spec.width - new_w) // 2
    canvas[top : top + new_h, left : left + new_w] = _scale(image, new_h, new_w, spec.interpolation)
    return canvas


def _scale(image: Image, height: int, width: int, interpolation: str) -> Image:
    h, w = image.shape[:2]
    if (h, w) == (height, width):
        return image
    cv2 = _opencv()
    if interpolation == "area" and height * width < h * w:
        exact: Image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        return exact
    # Four or nine neighbours cannot stand for a region of a large photo: fine structure would alias
    # away. So whole factors are averaged first, which is exact and fast; area averaging by a
    # fraction is 4x slower.
    factor = min(h // height, w // width)
    if factor > 1:
        image = cv2.resize(image, (w // factor, h // factor), interpolation=cv2.INTER_AREA)
    code = cv2.INTER_CUBIC if interpolation == "bicubic" else cv2.INTER_LINEAR
    scaled: Image = cv2.resize(image, (width, height), interpolation=code)
    return scaled


def load_libraries() -> None:
    """Load what the first image would have to wait for."""
    _opencv()
    importlib.import_module("PIL.ImageFile")


@cache
def _opencv() -> ModuleType:
    import cv2

    # Callers decode many images at once in threads of their own; a second pool inside each only
    # fights them.
    cv2.setNumThreads(0)
    return cv2
