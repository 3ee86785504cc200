"""The infer call itself: from the values that a wire has read to the values that it will write.

Both wires of the Open Inference Protocol end here, so they cannot answer differently.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from models.errors import SightlineError
from models.label_map import Reading
from models.labels import Answer, Scores
from models.predictor import Prediction
from serve_app.errors import RequestError, status_of
from serve_app.model import ServedModel
from serve_app.oip.tensors import Answered, Asked, Images, Tensor, Wanted

LABEL = "label"
# A request with more text or numbers than this is taken apart on a thread, while others are
# answered: lists of a million numbers take a quarter of a second.
BYTES_ASIDE = 1 << 18

Written = TypeVar("Written")
Parsed = TypeVar("Parsed")
Parameters = ParamSpec("Parameters")


async def parse_aside(
    num_bytes: int,
    parse: Callable[Parameters, Parsed],
    *args: Parameters.args,
    **kwargs: Parameters.kwargs,
) -> Parsed:
    """Return what a wire reads out of a request of so many bytes."""
    if num_bytes <= BYTES_ASIDE:
        return parse(*args, **kwargs)
    return await asyncio.to_thread(parse, *args, **kwargs)


async def infer(model: ServedModel, asked: Asked, write: Callable[[Answered], Written]) -> Written:
    """Score the images of one request with one reading of the labels, from start to end, and let
    the wire write the answer.
    """
    labels = model.labels
    least = asked.min_revision
    reading = await labels.at_least(least) if least else labels.current()
    model.note_reading(reading)
    predictions = await _predict(model, asked.images)
    with model.statistics.output():
        answers = _answers(model, reading, predictions, asked.wanted)
        tensors = [_output(reading, predictions, answers, wanted) for wanted in asked.wanted]
        return write(Answered(asked.id, tensors, labels.facts(reading)))


async def _predict(model: ServedModel, images: Images) -> Sequence[Prediction]:
    if images.pixels:
        scored = await model.run_each(images.pixels)
    elif images.unready:
        scored = await model.prepare_each(images.unready)
    else:
        scored = await model.score_each(images.encoded)
    # The protocol has no errors per image, so the first bad one is the request's.
    predictions = []
    for index, entry in enumerate(scored):
        if isinstance(entry, SightlineError):
            where = f"image {index}: " if len(scored) > 1 else ""
            raise RequestError(status_of(entry), entry.code, f"{where}{entry}")
        predictions.append(entry)
    return predictions


def _answers(
    model: ServedModel,
    reading: Reading,
    predictions: Sequence[Prediction],
    outputs: Sequence[Wanted],
) -> Sequence[Answer]:
    """Return the answer for each image, where an output names labels; listing as many as any of the
    outputs asks for.
    """
    counts = [
        wanted.num_classes for wanted in outputs if wanted.num_classes or wanted.name == LABEL
    ]
    if not counts:
        return ()
    most = max(counts)
    scores: Scores = "top" if most else "none"
    answers = [reading.read(row, top_k=most, scores=scores) for row in _rows(predictions)]
    for answer in answers:
        model.note_answer(answer, reading)
    return answers


def _output(
    reading: Reading,
    predictions: Sequence[Prediction],
    answers: Sequence[Answer],
    wanted: Wanted,
) -> Tensor:
    if wanted.num_classes:
        count = min(wanted.num_classes, reading.num_listed)
        return _classification(answers, wanted.name, count)
    if wanted.name == LABEL:
        return Tensor(LABEL, [answer.label for answer in answers], (len(answers),))
    values = np.concatenate([getattr(entry, wanted.name) for entry in predictions])
    return Tensor(wanted.name, values, values.shape)


def _classification(answers: Sequence[Answer], name: str, count: int) -> Tensor:
    lines = [
        f"{score.probability:.6f}:{score.index}:{score.label}"
        for answer in answers
        for score in answer.scores[:count]
    ]
    return Tensor(name, lines, (len(answers), count))


def _rows(predictions: Sequence[Prediction]) -> list[npt.NDArray[np.float32]]:
    return [entry.probabilities[0] for entry in predictions if entry.probabilities is not None]
