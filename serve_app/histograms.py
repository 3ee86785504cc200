"""Distributions with fixed buckets, as Prometheus wants them. Times come in nanoseconds."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

NS = 1_000_000_000
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Histogram:
    """How many values fell into each bucket, and their sum."""

    __slots__ = ("bounds", "counts", "scale", "total")

    def __init__(self, bounds: Sequence[float], scale: float = 1.0) -> None:
        """`bounds` are the upper ends, inclusive; values come `scale` times larger."""
        self.bounds = [bound * scale for bound in bounds]
        self.counts = [0] * (len(bounds) + 1)
        self.scale = scale
        self.total: float = 0

    def add(self, value: float, count: int = 1) -> None:
        """Add a value that occurred `count` times."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.total += value * count

    def add_sum(self, total: float, count: int) -> None:
        """Add `count` values that are the same and make up a total."""
        self.counts[bisect_left(self.bounds, total / count)] += count
        self.total += total

    def frozen(self) -> Distribution:
        """Return it as it is now, in the unit of its bounds."""
        rising, so_far = [], 0
        for count in self.counts:
            so_far += count
            rising.append(so_far)
        bounds = tuple(bound / self.scale for bound in self.bounds)
        return Distribution(bounds, tuple(rising), self.total / self.scale)


@dataclass(frozen=True)
class Distribution:
    """A histogram at one moment: how many values were at most each bound, the last without any."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]  # rising; one more than there are bounds
    total: float

    @property
    def count(self) -> int:
        """How many values there were."""
        return self.counts[-1]
