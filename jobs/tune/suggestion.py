"""What the losses of a learning-rate range test say: where learning is fastest, where it breaks.

Plain numbers; it knows nothing of how the losses came about.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

STEEPEST, BELOW_DIVERGENCE = "steepest descent", "a tenth of where it diverged"
HAS_FALLEN = 0.9  # of the first loss: noise alone does not come below it
STILL_SMALL = 0.5  # of the first loss: four times almost nothing is almost nothing


@dataclass(frozen=True)
class Suggestion:
    """The outcome of a range test. `rate` is None where the loss never fell; `by` says which of the
    two other rates it comes from.
    """

    rate: float | None
    by: str
    steepest: float | None
    diverged: float | None
    smoothed: list[float]  # without lag, up to the point of divergence


@dataclass(frozen=True)
class RangeTest:
    """The rate and the loss of each step. A loss is of the weights before the step's update."""

    rates: list[float]
    losses: list[float]
    suggestion: Suggestion

    def as_json(self) -> dict[str, Any]:
        """Return plain values; a loss that is no number is None."""
        losses = [loss if math.isfinite(loss) else None for loss in self.losses]
        return {**asdict(self.suggestion), "rates": self.rates, "losses": losses}


def smooth(losses: Sequence[float], smoothing: float) -> list[float]:
    """Return the exponential moving average, each value divided by the weights that it has so far,
    so that the first ones are not too low; up to the first loss that is no number.
    """
    smoothed: list[float] = []
    average = 0.0
    for step, loss in enumerate(losses, start=1):
        if not math.isfinite(loss):
            break
        average = smoothing * average + (1 - smoothing) * loss
        smoothed.append(average / (1 - smoothing**step))
    return smoothed


def smooth_centred(losses: Sequence[float], smoothing: float) -> list[float]:
    """Return the mean of the moving average from the left and the one from the right: either alone
    lags, by 1 / (1 - smoothing) steps.
    """
    right = smooth(losses[::-1], smoothing)[::-1]
    return [(a + b) / 2 for a, b in zip(smooth(losses, smoothing), right, strict=True)]


def find_divergence(losses: Sequence[float], smoothing: float, times: float) -> int | None:
    """Return the first step whose smoothed loss is `times` the lowest before it, and no longer
    small beside the first, or, after it had fallen, above the first again: all that was learnt is
    lost. A loss that is no number diverges.
    """
    smoothed = smooth(losses, smoothing)
    lowest = math.inf
    for step, loss in enumerate(smoothed):
        lowest = min(lowest, loss)
        has_fallen = lowest < HAS_FALLEN * smoothed[0]
        has_risen = loss > times * lowest and loss > STILL_SMALL * smoothed[0]
        if has_risen or (has_fallen and loss > smoothed[0]):
            return step
    return len(smoothed) if len(smoothed) < len(losses) else None


def suggest(
    rates: Sequence[float], losses: Sequence[float], smoothing: float, times: float
) -> Suggestion:
    """Return the rate to train with, from the rates of a test, each higher than the one before, and
    the loss at each.

    It is the rate at which the smoothed loss falls fastest per decade, but no more than a tenth of
    the one at which it diverged.
    """
    at = find_divergence(losses, smoothing, times)
    diverged = None if at is None else float(rates[min(at, len(rates) - 1)])
    smoothed = smooth_centred(losses[:at], smoothing)
    steepest = _steepest(rates[: len(smoothed)], smoothed)
    if steepest is None:
        return Suggestion(None, "the loss never fell", None, diverged, smoothed)
    if diverged is not None and steepest > diverged / 10:
        return Suggestion(diverged / 10, BELOW_DIVERGENCE, steepest, diverged, smoothed)
    return Suggestion(steepest, STEEPEST, steepest, diverged, smoothed)


def _steepest(rates: Sequence[float], smoothed: list[float]) -> float | None:
    if len(smoothed) < 3:
        return None
    slopes = np.gradient(np.array(smoothed), np.log10(np.array(rates)))
    lowest = int(np.argmin(smoothed))  # what falls behind it, falls back from a rise
    if smoothed[lowest] >= HAS_FALLEN * smoothed[0]:
        return None
    return float(rates[int(np.argmin(slopes[: lowest + 1]))])
