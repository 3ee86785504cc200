"""What one decoded image looks like, in numbers: light, sharpness, and a fingerprint.

Runs inside Ray tasks, so it knows nothing of the set. The traits are those of cleanvision, taken
from the picture at a size of at most `LONGEST` pixels: a photo of 12 million pixels says nothing
more, and takes a second.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.decoders import ImageLimits, decode
from models.errors import ImageDecodeError
from models.preprocess import Box

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

LONGEST = 512
TRAITS = (  # names of cleanvision, but for the last
    "brightness_perc_99",
    "brightness_perc_5",
    "entropy",
    "blurriness",
    "blurriness_grayscale_std",
    "sharpness",
)
GRID = 32  # pixels a side of the picture that the fingerprint is taken from
LOWEST = 8  # frequencies a side that it keeps
FINGERPRINT = LOWEST * LOWEST - 1
EDGE_SCALES = (0.7, 1.4, 1.4, 2.8)  # pixels: differences of the first two and of the last two
# In grey levels; below it a picture is of one tone, and its fingerprint would be noise.
LEAST_CONTRAST = 1.0


def describe(
    data: bytes, limits: ImageLimits, box: Box | None = None, grey_bits: int = 16
) -> tuple[Floats, Floats]:
    """Return the traits, in the order of `TRAITS`, and the fingerprint of one encoded image.

    Raises `ImageError` where it cannot be decoded.
    """
    if box is None:
        pixels = decode(data, limits, smallest=(LONGEST, LONGEST), grey_bits=grey_bits)
    else:
        left, top, right, bottom = box
        pixels = decode(data, limits, grey_bits=grey_bits)[top:bottom, left:right]
        if not pixels.size:
            raise ImageDecodeError(f"the box {left}, {top}, {right}, {bottom} is empty")
    pixels = _shrink(pixels)
    return measure_traits(pixels), fingerprint(pixels)


def measure_traits(pixels: Pixels) -> Floats:
    """Return the traits of a picture (h, w, 3)."""
    import cv2
    from cleanvision.issue_managers import IssueType
    from cleanvision.issue_managers.image_property import (
        BlurrinessProperty,
        BrightnessProperty,
        EntropyProperty,
    )
    from PIL import Image

    # A grey picture is one channel to cleanvision: the entropy of three equal ones is higher.
    is_grey = bool(
        (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1:] == pixels[..., :1]).all()
    )
    image = Image.fromarray(pixels[..., 0] if is_grey else pixels)
    values = {
        **BrightnessProperty(IssueType.DARK.value).calculate(image),
        **EntropyProperty().calculate(image),
        **BlurrinessProperty().calculate(image),
        "sharpness": _sharpness(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)),
    }
    return np.array([float(values[name]) for name in TRAITS], np.float32)


def fingerprint(pixels: Pixels) -> Floats:
    """Return the lowest frequencies of a picture's grey values (FINGERPRINT,), of unit length.

    Neither brightness nor contrast nor size change it. Zeros for a picture of one tone.
    """
    import cv2

    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    small = cv2.resize(grey, (GRID, GRID), interpolation=cv2.INTER_AREA)
    if small.std() < LEAST_CONTRAST:
        return np.zeros(FINGERPRINT, np.float32)
    lowest = cv2.dct(small)[:LOWEST, :LOWEST].reshape(-1)[1:]
    found: Floats = lowest / max(float(np.linalg.norm(lowest)), 1e-6)
    return found


def _sharpness(grey: Pixels) -> float:
    """Return how steep the steepest edges are, as a logarithm.

    A ratio of two scales, and of the few strongest places only: so neither a part with little
    texture nor a dim one is taken for a blurred one. cleanvision's own measure works on 64 pixels,
    where only a heavy blur shows, and low contrast looks like one.
    """
    import cv2

    picture = grey.astype(np.float32)
    scales = [cv2.GaussianBlur(picture, (0, 0), sigma) for sigma in EDGE_SCALES]
    fine, coarse = (
        float(np.percentile(np.abs(above - below), 99.5)) + 0.05
        for above, below in zip(scales[::2], scales[1::2], strict=True)
    )
    return float(np.log(fine / coarse))


def _shrink(pixels: Pixels) -> Pixels:
    import cv2

    height, width = pixels.shape[:2]
    scale = LONGEST / max(height, width)
    if scale >= 1:
        return np.ascontiguousarray(pixels)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small: Pixels = cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_AREA)
    return small
