"""How sure a figure is: intervals of 95 %, by the bootstrap (Efron 1979, percentile method) and,
for a share that resampling cannot move, by Wilson's score (1927).

Images are drawn as if they were independent. Where many show one part, or one sender, the
intervals are too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
DASH = "\u2013"  # between two numbers, or where there is none
Z = 1.959963984540054  # of the normal distribution, for `LEVEL`

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval; None where there is nothing to tell it by."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def text(self, digits: int = 3) -> str:
        """Return `0.912 (0.884-0.936)`, or a dash."""
        if self.value is None:
            return DASH
        if self.low is None or self.high is None:
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} ({self.low:.{digits}f}{DASH}{self.high:.{digits}f})"


def percentile(value: float, resampled: Floats) -> Estimate:
    """Return a figure with the middle 95 % of its values in the resamples (R,); those that have
    none (not a number) do not count.
    """
    if not np.isfinite(value):
        return Estimate(None)
    found = resampled[np.isfinite(resampled)]
    if not len(found):
        return Estimate(float(value))
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(low), float(high))


def wilson(num_right: float, num_images: float) -> Estimate:
    """Return a share with Wilson's score interval."""
    if num_images <= 0:
        return Estimate(None)
    share = num_right / num_images
    spread = Z * Z / num_images
    middle = (share + spread / 2) / (1 + spread)
    half = Z * np.sqrt(share * (1 - share) / num_images + spread / (4 * num_images)) / (1 + spread)
    low = 0.0 if num_right == 0 else float(middle - half)
    high = 1.0 if num_right == num_images else float(middle + half)
    return Estimate(float(share), max(0.0, low), min(1.0, high))


def share_interval(num_right: float, num_images: float, resampled: Floats) -> Estimate:
    """Return a share with its bootstrap interval; with Wilson's where all or none are right, since
    no resample of those differs: five of five would be 1 for certain.
    """
    if num_right in (0, num_images):
        return wilson(num_right, num_images)
    return percentile(num_right / num_images, resampled)
