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
    """Return slices by a number (N,): quarters of equally many images, and a value that fills a
    quarter by itself. Of four values or fewer each is one.
    """
    known = np.isfinite(values)
    if known.sum() < QUARTERS * LEAST_IMAGES:
        return []
    quantiles = np.quantile(values[known], np.linspace(0, 1, QUARTERS + 1))
    edges, times = np.unique(quantiles, return_counts=True)
    distinct = np.unique(values[known])
    alone = distinct if len(distinct) <= QUARTERS else edges[times > 1]
    # From 1 on, and the last edge belongs to the quarter below it.
    place = np.searchsorted(edges[:-1], values, side="right")
    place[np.isin(values, alone)] = 0
    parts = [known & (values == value) for value in alone]
    parts += [known & (place == number) for number in range(1, len(edges))]
    found = [
        _slice(trait, _range(values[mine], unit), mine, is_right)
        for mine in parts
        if mine.sum() >= LEAST_IMAGES
    ]
    return found if len(found) > 1 else []


def _range(values: Floats, unit: str) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:g}{unit}" if low == high else f"{low:.0f} to {high:.0f}{unit}"


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
