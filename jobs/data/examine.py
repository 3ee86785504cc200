"""What reading one image shows: its digest, its size, and whether it can be used."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from models.decoders import ImageLimits, read_size
from models.errors import ImageError
from models.preprocess import Box, PreprocessSpec, prepare


class Examined(NamedTuple):
    """What reading one image showed; `reason` says why it cannot be used, "" if it can."""

    size: int  # bytes
    sha256: str
    width: int
    height: int
    reason: str


def examine_image(
    data: bytes | Exception,
    spec: PreprocessSpec,
    limits: ImageLimits,
    box: Box | None = None,
) -> Examined:
    """Hash and decode the bytes of one image, or take note of why there are none."""
    if isinstance(data, Exception):
        return Examined(0, "", 0, 0, str(data))
    digest = hashlib.sha256(data).hexdigest()
    try:
        prepare(data, spec, limits, box)
        height, width = read_size(data)
    except ImageError as error:
        return Examined(len(data), digest, 0, 0, str(error))
    return Examined(len(data), digest, width, height, "")
