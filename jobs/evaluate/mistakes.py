"""The mistakes that a person should look at first: wrong, and sure of it. With the picture as the
model saw it, and what its answer depended on.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.data import places
from jobs.data.config import DataConfig
from jobs.evaluate.judged import Judged
from jobs.evaluate.saliency import occlude, overlay
from models.errors import ImageError
from models.predictor import Predictor
from models.preprocess import Box, PreprocessSpec, prepare

QUALITY = 72


@dataclass(frozen=True)
class Mistake:
    """One image with a wrong answer. The pictures are `data:` URIs, "" where there is none."""

    path: str
    truth: str
    answer: str
    confidence: float
    truth_probability: float
    picture: str = ""
    heat: str = ""
    lowest: float | None = None  # probability of the answer with its weightiest part hidden


def worst(judged: Judged, count: int) -> npt.NDArray[np.intp]:
    """Return the positions of the surest wrong answers, the surest first. An image answered
    `unknown` is not wrong but unanswered.
    """
    wrong = np.flatnonzero(~judged.is_right & (judged.answers >= 0))
    return wrong[np.argsort(-judged.confidence[wrong], kind="stable")][:count]


def describe(
    judged: Judged,
    positions: npt.NDArray[np.intp],
    rows: pa.Table,
    predictor: Predictor,
    owners: npt.NDArray[np.intp],
    data: DataConfig,
    *,
    pixels: int,
    num_salient: int,
    cells: int,
) -> list[Mistake]:
    """Return the mistakes at some positions, of whose images `rows` says where they lie. The first
    `num_salient` have a map of what their answer depended on. An image that cannot be read any more
    has no picture.
    """
    images = _prepared(rows, data, predictor.manifest.preprocess)
    found = []
    for number, (position, path, image) in enumerate(
        zip(positions.tolist(), rows["path"].to_pylist(), images, strict=True)
    ):
        picture, heat, lowest = "", "", None
        if image is not None:
            picture = data_uri(image, pixels)
            if number < num_salient:
                seen = occlude(predictor, image, owners, int(judged.answers[position]), cells)
                heat, lowest = data_uri(overlay(image, seen.heat), pixels), seen.lowest
        found.append(
            Mistake(
                path,
                judged.name(int(judged.truth[position])),
                judged.name(int(judged.answers[position])),
                float(judged.confidence[position]),
                float(judged.probabilities[position, judged.truth[position]]),
                picture,
                heat,
                lowest,
            )
        )
    return found


def data_uri(image: npt.NDArray[np.uint8], pixels: int) -> str:
    """Return a JPEG of an image (H, W, 3), no side longer than `pixels`, as a `data:` URI."""
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((pixels, pixels))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _prepared(
    rows: pa.Table, data: DataConfig, spec: PreprocessSpec
) -> Sequence[npt.NDArray[np.uint8] | None]:
    boxes: list[Box | None] = rows["box"].to_pylist()

    def ready(position: int, found: bytes | Exception) -> npt.NDArray[np.uint8] | None:
        if isinstance(found, Exception):
            return None
        try:
            return prepare(found, spec, data.limits, boxes[position])
        except ImageError:
            return None

    images: Sequence[npt.NDArray[np.uint8] | None] = places.read_each(
        places.places_of(rows), ready, data.read_threads, limits=data.limits
    )
    return images
