"""The order of an epoch in which several images of each class stand side by side, for objectives
that compare images within a batch: pure arithmetic on row numbers.

As every order of `jobs.data.order` it is a function of (seed, epoch) alone. It is a sequence of
groups of `images_per_class` rows of one class, so wherever it is cut into batches that hold whole
groups, every image has others of its class beside it, on every rank.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from jobs.data.order import Ids, Labels
from models.errors import DataError


def grouped(
    labels: Labels,
    images_per_class: int,
    epoch: int,
    seed: int,
    *,
    is_even: bool = False,
    weights: npt.NDArray[np.float64] | None = None,
) -> Ids:
    """Return row numbers in groups of one class each, those of a class spread over the epoch.

    A class has as many groups as its images fill, the last one filled up with some of them again;
    where images have `weights`, as many as its weight is worth, and where classes are to be
    `is_even`, as many as any other. Within a class every image is drawn floor(x) or ceil(x) times
    by its weight, and twice into one group only if the class has fewer images than a group.

    Raises `DataError` where no image has a weight above 0.
    """
    own = np.ones(len(labels)) if weights is None else weights
    generator = np.random.default_rng((seed, epoch))
    totals = np.bincount(labels, weights=own)
    present = np.flatnonzero(totals > 0)
    if not len(present) or not np.isfinite(totals).all():
        raise DataError("the weights of the training images must be finite and not all 0")
    groups: list[Ids] = []
    places: list[npt.NDArray[np.float64]] = []
    for label in present.tolist():
        rows = generator.permutation(np.flatnonzero(labels == label))
        share = 1 / len(present) if is_even else totals[label] / totals.sum()
        num_groups = max(1, -(-round(len(labels) * share) // images_per_class))
        drawn = _draw(rows, own[rows], num_groups * images_per_class, generator)
        # An image that is drawn several times in a row goes into groups side by side.
        groups.append(drawn.reshape(images_per_class, num_groups).T)
        places.append((np.arange(num_groups) + generator.random(num_groups)) / num_groups)
    return np.concatenate(groups)[np.argsort(np.concatenate(places))].reshape(-1)


def _draw(
    rows: Ids, weights: npt.NDArray[np.float64], count: int, generator: np.random.Generator
) -> Ids:
    """Draw so many rows, each as often as its weight says, by systematic sampling."""
    reach = np.cumsum(weights)
    ticks = (generator.random() + np.arange(count)) * (reach[-1] / count)
    drawn: Ids = rows[np.searchsorted(reach, ticks, side="right").clip(max=len(rows) - 1)]
    return drawn
