"""The infer call itself: from the values that a wire has read to the values that it will write.

Both wires of the Open Inference Protocol end here, so they cannot answer differently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from models.errors import SightlineError
from models.label_map import Reading
from models.predictor import Prediction
from serve_app.errors import RequestError, status_of
from serve_app.model import ServedModel
from serve_app.oip.tensors import Answered, Asked, Images, Tensor, Wanted

Written = TypeVar("Written")


async def infer(model: ServedModel, asked: Asked, write: Callable[[Answered], Written]) -> Written:
    """Score the images of one request with one reading of the labels, from start to end, and let
    the wire write the answer.
    """
    labels = model.labels
    least = asked.min_revision
    reading = await labels.at_least(least) if least else labels.current()
    predictions = await _predict(model, asked.images)
    with model.statistics.output():
        tensors = [_output(reading, predictions, wanted) for wanted in asked.wanted]
        return write(Answered(asked.id, tensors, labels.facts(reading)))


async def _predict(model: ServedModel, images: Images) -> Sequence[Prediction]:
    if images.pixels:
        return await model.run_each(images.pixels)
    scored = await model.score_each(images.encoded)
    # The protocol has no errors per image, so the first bad one is the request's.
    for index, entry in enumerate(scored):
        if isinstance(entry, SightlineError):
            where = f"image {index}: " if len(scored) > 1 else ""
            raise RequestError(status_of(entry), entry.code, f"{where}{entry}")
    return [entry for entry in scored if isinstance(entry, Prediction)]


def _output(reading: Reading, predictions: Sequence[Prediction], wanted: Wanted) -> Tensor:
    if wanted.num_classes:
        return _classification(reading, predictions, wanted)
    return WRITERS[wanted.name](reading, predictions, wanted.name)


def _floats(reading: Reading, predictions: Sequence[Prediction], name: str) -> Tensor:
    values = np.concatenate([getattr(entry, name) for entry in predictions])
    return Tensor(name, values, values.shape)


def _labels(reading: Reading, predictions: Sequence[Prediction], name: str) -> Tensor:
    labels = [reading.read(row, scores="none").label for row in _rows(predictions)]
    return Tensor(name, labels, (len(labels),))


def _classification(reading: Reading, predictions: Sequence[Prediction], wanted: Wanted) -> Tensor:
    count = min(wanted.num_classes, reading.num_listed)
    lines = [
        f"{score.probability:.6f}:{score.index}:{score.label}"
        for row in _rows(predictions)
        for score in reading.read(row, top_k=count).scores
    ]
    return Tensor(wanted.name, lines, (len(predictions), count))


def _rows(predictions: Sequence[Prediction]) -> list[npt.NDArray[np.float32]]:
    return [entry.probabilities[0] for entry in predictions if entry.probabilities is not None]


WRITERS: Mapping[str, Callable[[Reading, Sequence[Prediction], str], Tensor]] = {
    "probabilities": _floats,
    "embedding": _floats,
    "label": _labels,
}
