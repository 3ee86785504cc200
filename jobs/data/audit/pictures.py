"""Small pictures of what the page shows. They are read once more: no pass keeps any."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from jobs.data import places
from jobs.data.audit.findings import Finding
from jobs.data.audit.subject import Subject
from jobs.data.config import DataConfig
from models.decoders import decode
from models.errors import ImageError
from models.preprocess import Box, PreprocessSpec

QUALITY = 75


def draw_pictures(
    subject: Subject,
    shown: Iterable[Finding],
    config: DataConfig,
    spec: PreprocessSpec,
    pixels: int,
) -> dict[int, str]:
    """Return a `data:` URI per row of the findings; an image that cannot be decoded has none."""
    wanted = {row for one in shown for row in (one.row, one.other_row) if row is not None}
    rows = sorted(row for row in wanted if subject.is_usable[row])
    table = subject.table.take(pa.array(rows, pa.int64()))
    boxes: list[Box | None] = table["box"].to_pylist()

    def draw(position: int, data: bytes | Exception) -> str | None:
        if isinstance(data, Exception):
            return None
        try:
            return _draw(data, boxes[position], config, spec, pixels)
        except ImageError:
            return None

    drawn = places.read_each(
        places.places_of(table), draw, config.read_threads, limits=config.limits
    )
    return {row: uri for row, uri in zip(rows, drawn, strict=True) if uri is not None}


def _draw(
    data: bytes, box: Box | None, config: DataConfig, spec: PreprocessSpec, pixels: int
) -> str:
    from PIL import Image

    smallest = (0, 0) if box is not None else (pixels, pixels)
    found = decode(data, config.limits, smallest=smallest, grey_bits=spec.grey_bits)
    if box is not None:
        left, top, right, bottom = box
        found = found[top:bottom, left:right]
    image = Image.fromarray(np.ascontiguousarray(found))
    image.thumbnail((pixels, pixels))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
