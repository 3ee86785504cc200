"""What a threshold on the confidence buys: how many images are still answered, and how many of the
answers are right.

A threshold here stands alone: those of a label map are not applied with it. An image whose best
label the map hides is answered at none.

Suggestions know no costs: only you know what a wrong answer costs beside an abstention. A threshold
that was chosen on some images flatters itself on the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal

import numpy as np

from jobs.evaluate.judged import Flags, Floats, Judged

STEPS = 100
TARGETS = (0.95, 0.98, 0.99, 0.995)
LEAST_ANSWERS = 10
LEAST_DIGITS, MOST_DIGITS = 3, 17  # of a suggested threshold; more than the last no number has


@dataclass(frozen=True)
class Curve:
    """At the thresholds 0, 0.01, ... 1: how many images are answered, and how many rightly."""

    num_images: int
    num_answered: tuple[int, ...]
    num_right: tuple[int, ...]

    def coverage(self, step: int) -> float:
        """Return the share of images that are answered."""
        return self.num_answered[step] / max(1, self.num_images)

    def accuracy(self, step: int) -> float | None:
        """Return the share of right answers, None without an answer."""
        answered = self.num_answered[step]
        return self.num_right[step] / answered if answered else None


@dataclass(frozen=True)
class Suggestion:
    """The lowest threshold that reaches a share of right answers; None where none does with
    `LEAST_ANSWERS` answers or more. `reached` and `coverage` are what it gives. Of the numbers that
    give the same it is one with few digits: what is shown is what was checked.
    """

    target: float
    threshold: float | None
    reached: float | None
    coverage: float | None


@dataclass(frozen=True)
class LabelSuggestion:
    """The same for the answers with one label; `curve` is of those answers alone."""

    name: str
    curve: Curve
    suggestion: Suggestion


@dataclass(frozen=True)
class Thresholds:
    """One threshold for all, and one for each label that is ever answered."""

    curve: Curve
    suggestions: tuple[Suggestion, ...]
    precision: float  # that the thresholds of the labels are to reach
    labels: tuple[LabelSuggestion, ...]
    coverage: float  # with all thresholds of the labels in force
    accuracy: float | None


def explore(judged: Judged, precision: float) -> Thresholds:
    """Return what thresholds give on N images."""
    confidence, is_right = judged.confidence, judged.is_best_right
    labels = []
    kept = np.zeros(len(judged), dtype=bool)
    for number, name in enumerate(judged.labels):
        if number in judged.hidden:
            continue
        mine = judged.best == number
        found = suggest(confidence[mine], is_right[mine], precision)
        labels.append(LabelSuggestion(name, _curve(confidence[mine], is_right[mine]), found))
        if found.threshold is not None:
            kept |= mine & (confidence >= found.threshold)
    shown, count = ~judged.is_hidden, len(judged)
    sure, right = confidence[shown], is_right[shown]
    return Thresholds(
        _curve(sure, right, count),
        tuple(suggest(sure, right, target, count) for target in TARGETS),
        precision,
        tuple(labels),
        float(kept.mean()),
        float(is_right[kept].mean()) if kept.any() else None,
    )


def suggest(
    confidence: Floats, is_right: Flags, target: float, num_images: int | None = None
) -> Suggestion:
    """Return the lowest threshold at which the share of right ones among (N,) reaches a target.
    `num_images` counts those that are never answered, too.
    """
    order = np.argsort(-confidence, kind="stable")
    falling = confidence[order]
    counts = np.arange(1, len(order) + 1)
    shares = np.cumsum(is_right[order]) / counts
    # Images of one confidence stand or fall together.
    is_last = np.append(falling[1:] < falling[:-1], True)[: len(order)]
    reaching = np.flatnonzero(is_last & (counts >= LEAST_ANSWERS) & (shares >= target))
    if not len(reaching):
        return Suggestion(target, None, None, None)
    last = int(reaching[-1])
    below = float(falling[last + 1]) if last + 1 < len(order) else 0.0
    threshold = _shortened(float(falling[last]), below)
    coverage = float(counts[last] / (num_images or len(order)))
    return Suggestion(target, threshold, float(shares[last]), coverage)


def _shortened(confidence: float, below: float) -> float:
    """Return a number with few digits, at most `confidence` and above the next one `below` it: as a
    threshold it lets in what `confidence` lets in, and no more.
    """
    exact = Decimal(repr(confidence))
    for digits in range(LEAST_DIGITS, MOST_DIGITS + 1):
        short = float(exact.quantize(Decimal(1).scaleb(-digits), ROUND_FLOOR))
        if short > below:
            return short
    return confidence


def threshold_text(threshold: float) -> str:
    """Return a threshold with all its digits, three at least."""
    short = f"{threshold:.{LEAST_DIGITS}f}"
    return short if float(short) == threshold else f"{Decimal(repr(threshold)):f}"


def _curve(confidence: Floats, is_right: Flags, num_images: int | None = None) -> Curve:
    rising = np.sort(confidence)
    rising_right = np.sort(confidence[is_right])
    steps = np.arange(STEPS + 1) / STEPS
    answered = len(rising) - np.searchsorted(rising, steps, side="left")
    right = len(rising_right) - np.searchsorted(rising_right, steps, side="left")
    count = len(rising) if num_images is None else num_images
    return Curve(count, tuple(answered.tolist()), tuple(right.tolist()))
