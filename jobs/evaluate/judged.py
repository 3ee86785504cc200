"""What a model said of images whose truth is known: the arrays that every figure is computed from.

Pure. Shape legend: N images, L labels (the model's classes, or the living labels of a label map).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

from models.label_map import UNKNOWN, Reading

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Judged:
    """N images and what was said of them."""

    labels: tuple[str, ...]
    probabilities: npt.NDArray[np.float32]  # (N, L), rows sum to 1
    answers: Numbers  # (N,), the label that is answered, or `UNKNOWN`
    truth: Numbers  # (N,)
    hidden: tuple[int, ...] = ()  # labels that are never answered: the label map hides them

    @classmethod
    def by_reading(
        cls, probabilities: npt.NDArray[np.float32], truth: Numbers, reading: Reading
    ) -> Self:
        """Return the outputs (N, C) of a model as a reading answers with them; `truth` are
        positions among the reading's living labels.
        """
        living = reading.label_map.living
        names = tuple(label.name for label in living)
        hidden = tuple(at for at, label in enumerate(living) if label.status == "hidden")
        sums = np.zeros((len(probabilities), len(names)), np.float32)
        for output, owner in enumerate(reading.owners.tolist()):
            sums[:, owner] += probabilities[:, output]
        winners = reading.winners(probabilities) if len(probabilities) else np.zeros(0, np.int64)
        return cls(names, sums, winners.astype(np.int64), truth.astype(np.int64), hidden)

    def __len__(self) -> int:
        return len(self.truth)

    @cached_property
    def best(self) -> Numbers:
        """The most probable label, (N,), whether it is answered or not."""
        best: Numbers = self.probabilities.argmax(axis=1).astype(np.int64)
        return best

    @cached_property
    def confidence(self) -> Floats:
        """The probability of the most probable label, (N,)."""
        sure: Floats = self.probabilities.max(axis=1).astype(np.float64)
        return sure

    @cached_property
    def is_right(self) -> Flags:
        """Which images are answered with their label, (N,)."""
        right: Flags = self.answers == self.truth
        return right

    @cached_property
    def is_best_right(self) -> Flags:
        """Of which images the most probable label is theirs, (N,)."""
        right: Flags = self.best == self.truth
        return right

    @cached_property
    def is_hidden(self) -> Flags:
        """Of which images the most probable label is hidden, (N,): no threshold answers them."""
        hidden: Flags = np.isin(self.best, self.hidden)
        return hidden

    @cached_property
    def num_hidden(self) -> int:
        """How many images are answered `unknown` because their label is hidden."""
        return int(self.is_hidden.sum())

    @cached_property
    def num_below_threshold(self) -> int:
        """How many images are answered `unknown` though their label is not hidden."""
        return int(((self.answers == UNKNOWN) & ~self.is_hidden).sum())

    @cached_property
    def num_unknown(self) -> int:
        """How many images are answered `unknown`: their label is hidden or below its threshold."""
        return int((self.answers == UNKNOWN).sum())

    def name(self, label: int) -> str:
        """Return the name of an answer."""
        return "unknown" if label == UNKNOWN else self.labels[label]
