"""Put a draft bundle to the images of a split, through the engine that would serve it: for figures,
and for outputs that are kept to try label maps on.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from jobs.console import Advance
from jobs.data.streams import IndexedImages
from jobs.export.exporter import Draft
from jobs.train.metrics import Evaluation, Evaluator
from models.predictor import open_predictor
from models.validation_outputs import ValidationOutputs

BATCH = 32

Judged = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]  # probabilities [B, C], labels [B]


def evaluate(draft: Draft, images: IndexedImages, split: str, advance: Advance) -> Evaluation:
    """Return the figures of a bundle on a split."""
    evaluator = Evaluator([entry.name for entry in draft.manifest.classes])
    for probabilities, labels in _judge(draft, images, split, advance):
        evaluator.update(torch.from_numpy(probabilities), torch.from_numpy(labels))
    return evaluator.compute()


def collect_outputs(
    draft: Draft, images: IndexedImages, split: str, advance: Advance
) -> ValidationOutputs:
    """Return what a bundle says of every image of a split."""
    judged = list(_judge(draft, images, split, advance))
    return ValidationOutputs(
        split,
        np.concatenate([probabilities for probabilities, _ in judged]),
        np.concatenate([labels for _, labels in judged]).astype(np.intp),
    )


def _judge(draft: Draft, images: IndexedImages, split: str, advance: Advance) -> Iterator[Judged]:
    predictor = open_predictor(draft.bundle)
    try:
        for batch in images.batches(split, batch_size=BATCH, shuffle=False):
            prediction = predictor.predict(batch.images)
            assert prediction.probabilities is not None
            yield prediction.probabilities, batch.labels
            advance(len(batch.labels))
    finally:
        predictor.close()
