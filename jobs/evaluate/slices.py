"""Where a model is worse than elsewhere: its accuracy among images that have something in common.

The worst slice by its accuracy alone is the smallest one, by chance; so slices stand in the order
of the upper end of their interval: what comes first is bad for certain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

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
    encoded = pa.array(names, pa.string()).fill_null("").dictionary_encode()
    found = encoded.dictionary.to_pylist()
    if len(found) < 2:
        return []
    place = encoded.indices.to_numpy(zero_copy_only=False)
    counts = np.bincount(place)
    right = np.bincount(place[is_right], minlength=len(found))
    usual = float(is_right.mean())
    return [
        _counted(trait, name or "(none)", int(right[at]), int(counts[at]), usual)
        for at, name in enumerate(found)
        if counts[at] >= LEAST_IMAGES
    ]


def in_order(slices: Sequence[Slice]) -> tuple[Slice, ...]:
    """Return slices, those first that are bad for certain."""
    return tuple(sorted(slices, key=lambda one: (one.accuracy.high or 0.0, -one.num_images)))


def cut(slices: Sequence[Slice]) -> tuple[tuple[Slice, ...], tuple[str, ...]]:
    """Return the first slices of each trait, and a sentence on each trait that has more."""
    shown, counts = [], Counter[str]()
    for one in slices:
        counts[one.trait] += 1
        if counts[one.trait] <= MOST_PER_TRAIT:
            shown.append(one)
    left_off = tuple(
        f"of {count:,} slices by {trait} the worst {MOST_PER_TRAIT} are listed and "
        f"{count - MOST_PER_TRAIT:,} left off"
        for trait, count in counts.items()
        if count > MOST_PER_TRAIT
    )
    return tuple(shown), left_off


def _slice(trait: str, name: str, mine: Flags, is_right: Flags) -> Slice:
    return _counted(trait, name, int(is_right[mine].sum()), int(mine.sum()), float(is_right.mean()))


def _counted(trait: str, name: str, right: int, count: int, usual: float) -> Slice:
    accuracy = wilson(right, count)
    return Slice(trait, name, accuracy, count, accuracy.high is not None and accuracy.high < usual)
