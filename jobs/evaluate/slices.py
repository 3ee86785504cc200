"""Where a model is worse than elsewhere: its accuracy among images that have something in common.

The worst slice by its accuracy alone is the smallest one, by chance; so slices stand in the order
of the upper end of their interval: what comes first is bad for certain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.evaluate.intervals import Estimate, wilson
from jobs.evaluate.judged import Flags, Floats

QUARTERS = 4
LEAST_IMAGES = 10
MOST_PER_TRAIT = 50


@dataclass(frozen=True)
class Slice:
    """The images that share something."""

    trait: str  # size, brightness, source, group
    name: str
    accuracy: Estimate  # with Wilson's interval
    num_images: int
    is_worse: bool  # the whole interval lies below the accuracy of all images


def by_value(trait: str, values: Floats, is_right: Flags, unit: str = "") -> list[Slice]:
    """Return slices of equally many images by a number (N,), in quarters."""
    known = np.isfinite(values)
    if known.sum() < QUARTERS * LEAST_IMAGES or np.ptp(values[known]) == 0:
        return []
    edges = np.unique(np.quantile(values[known], np.linspace(0, 1, QUARTERS + 1)))
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    found = []
    for number in range(len(edges) - 1):
        mine = known & (place == number)
        if mine.any():
            name = f"{edges[number]:.0f} to {edges[number + 1]:.0f}{unit}"
            found.append(_slice(trait, name, mine, is_right))
    return found if len(found) > 1 else []


def by_name(trait: str, names: Sequence[str | None], is_right: Flags) -> list[Slice]:
    """Return a slice for each name that has enough images; nothing where there is but one name."""
    given = np.array(["" if name is None else name for name in names], dtype=object)
    found, counts = np.unique(given.astype(str), return_counts=True)
    if len(found) < 2:
        return []
    large = [
        str(name)
        for name, count in sorted(zip(found, counts, strict=True), key=lambda pair: -pair[1])
        if count >= LEAST_IMAGES
    ]
    return [
        _slice(trait, name or "(none)", given == name, is_right) for name in large[:MOST_PER_TRAIT]
    ]


def in_order(slices: Sequence[Slice]) -> tuple[Slice, ...]:
    """Return slices, those first that are bad for certain."""
    return tuple(sorted(slices, key=lambda one: (one.accuracy.high or 0.0, -one.num_images)))


def _slice(trait: str, name: str, mine: Flags, is_right: Flags) -> Slice:
    count, right = int(mine.sum()), int(is_right[mine].sum())
    accuracy = wilson(right, count)
    is_worse = accuracy.high is not None and accuracy.high < float(is_right.mean())
    return Slice(trait, name, accuracy, count, is_worse)
