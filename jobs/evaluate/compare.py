"""Two models on the same images: which differences are more than chance.

Only images about which exactly one of the two is right tell them apart; McNemar's test (1947),
exact, asks whether those fall evenly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from jobs.evaluate.intervals import Estimate, percentile
from jobs.evaluate.judged import Flags, Judged


@dataclass(frozen=True)
class LabelChange:
    """The images of one label: how many each model has right, and each alone."""

    name: str
    num_images: int
    num_right: int
    num_right_other: int
    gained: int  # right by the first model only
    lost: int  # right by the other only


@dataclass(frozen=True)
class Comparison:
    """A model beside another one, `gained` and `lost` seen from the first."""

    name: str
    other: str
    num_images: int
    accuracy: float
    accuracy_other: float
    difference: Estimate  # of the accuracies, by the paired bootstrap
    both_right: int
    gained: int
    lost: int
    both_wrong: int
    p_value: float  # of McNemar's exact test, two-sided
    labels: tuple[LabelChange, ...]

    @property
    def verdict(self) -> str:
        """The test in a sentence."""
        if not self.gained + self.lost:
            return "Both are right about the same images."
        better = self.name if self.gained > self.lost else self.other
        chance = f"p = {self.p_value:.3g} (McNemar, exact)"
        if self.p_value < 0.05:
            return f"{better} is better, and hardly by chance: {chance}."
        return f"The difference may well be chance: {chance}."


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided p-value of McNemar's exact test."""
    if gained + lost == 0:
        return 1.0
    return float(binomtest(gained, gained + lost, 0.5).pvalue)


def compare(
    judged: Judged,
    other: Judged,
    *,
    name: str,
    other_name: str,
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare what two models said of the same N images, in the same order. The truth is that of
    the first; the other's answers are right by their own.
    """
    mine, theirs = judged.is_right, other.is_right
    count = len(mine)
    gained, lost = int((mine & ~theirs).sum()), int((~mine & theirs).sum())
    both = int((mine & theirs).sum())
    random = np.random.default_rng(seed)
    cells = np.array([gained, lost, count - gained - lost]) / count
    drawn = random.multinomial(count, cells, resamples)
    difference = percentile((gained - lost) / count, (drawn[:, 0] - drawn[:, 1]) / count)
    return Comparison(
        name=name,
        other=other_name,
        num_images=count,
        accuracy=float(mine.mean()),
        accuracy_other=float(theirs.mean()),
        difference=difference,
        both_right=both,
        gained=gained,
        lost=lost,
        both_wrong=count - both - gained - lost,
        p_value=mcnemar(gained, lost),
        labels=tuple(_changes(judged, mine, theirs)),
    )


def _changes(judged: Judged, mine: Flags, theirs: Flags) -> list[LabelChange]:
    found = []
    for number, name in enumerate(judged.labels):
        is_label = judged.truth == number
        found.append(
            LabelChange(
                name,
                int(is_label.sum()),
                int((is_label & mine).sum()),
                int((is_label & theirs).sum()),
                int((is_label & mine & ~theirs).sum()),
                int((is_label & ~mine & theirs).sum()),
            )
        )
    return found
