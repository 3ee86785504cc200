"""Figures of a classifier, overall and per class, from probabilities and labels. torchmetrics
computes them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)


@dataclass(frozen=True)
class ClassFigures:
    """Figures of one class, 0 to 1; `num_images` is how many images of it were evaluated."""

    name: str
    precision: float
    recall: float
    f1: float
    num_images: int


@dataclass(frozen=True)
class Evaluation:
    """Figures over a whole split."""

    num_images: int
    accuracy: float  # top-1
    balanced_accuracy: float  # mean recall of the classes that occur
    loss: float  # mean negative log-likelihood
    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]  # rows: truth, columns: answer

    def flat(self) -> dict[str, float]:
        """Return the overall figures by name, as they go into a manifest."""
        return {
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "loss": self.loss,
            "num_images": float(self.num_images),
        }


class Evaluator:
    """Accumulates batches. Where it is `shared`, every rank has one, and `compute` adds them up,
    however unequal their shares.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        device: torch.device | None = None,
        *,
        shared: bool = False,
    ) -> None:
        self._shared = shared
        self._names = tuple(class_names)
        self._device = device or torch.device("cpu")
        count = len(self._names)
        sync = {"sync_on_compute": shared}
        self._metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(count, average="micro", **sync),
                "precision": MulticlassPrecision(count, average="none", **sync),
                "recall": MulticlassRecall(count, average="none", **sync),
                "f1": MulticlassF1Score(count, average="none", **sync),
                "confusion": MulticlassConfusionMatrix(count, **sync),
            }
        ).to(self._device)
        self._loss = torch.zeros(2, dtype=torch.float64, device=self._device)  # sum, count

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add one batch: probabilities (N, C), labels (N,)."""
        probabilities, labels = probabilities.to(self._device), labels.to(self._device)
        self._metrics.update(probabilities, labels)
        likelihood = probabilities.gather(1, labels.view(-1, 1)).clamp_min(1e-12)
        self._loss += torch.stack(
            [-likelihood.double().log().sum(), likelihood.new_tensor(len(labels)).double()]
        )

    def compute(self) -> Evaluation:
        """Return the figures over everything seen; where it is shared, every rank has to ask."""
        loss = self._loss.clone()
        if self._shared:
            torch.distributed.all_reduce(loss)
        with warnings.catch_warnings():
            # A worker whose share is empty is no mistake here: the other workers' counts are added.
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
            values = self._metrics.compute()
        confusion = values["confusion"].cpu().to(torch.int64)
        support = confusion.sum(dim=1)
        recall = values["recall"].cpu()
        present = support > 0
        classes = tuple(
            ClassFigures(
                name,
                float(values["precision"][i]),
                float(recall[i]),
                float(values["f1"][i]),
                int(support[i]),
            )
            for i, name in enumerate(self._names)
        )
        return Evaluation(
            num_images=int(support.sum()),
            accuracy=float(values["accuracy"]),
            balanced_accuracy=float(recall[present].mean()) if bool(present.any()) else 0.0,
            loss=float(loss[0] / loss[1].clamp_min(1)),
            classes=classes,
            confusion=tuple(tuple(int(value) for value in row) for row in confusion),
        )
