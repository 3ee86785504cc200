"""In which order the images of a split are seen: pure arithmetic on row numbers, no images.

Everything is a function of (seed, epoch), never of how many workers there are or how far one got:
so a run resumes in the middle of an epoch by skipping batches, and two workers with batches of 32
see together what one worker sees with batches of 64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.errors import DataError

Ids = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int64]


def shuffled(num_rows: int, epoch: int, seed: int) -> Ids:
    """Return a full permutation of the row numbers, another one for every epoch."""
    return np.random.default_rng((seed, epoch)).permutation(num_rows)


def balanced(labels: Labels, class_weights: Sequence[float], epoch: int, seed: int) -> Ids:
    """Return as many row numbers as there are labels, drawn so that classes occur by their weights.

    A class of weight 2 is seen twice as often as one of weight 1, however many images it has.
    Within a class every image is drawn floor(x) or ceil(x) times (systematic sampling), so none is
    left out by chance for long.
    """
    weights = np.asarray(class_weights, dtype=np.float64)
    if (weights < 0).any() or not np.isfinite(weights).all() or weights.sum() == 0:
        raise DataError(f"class weights must be finite, not negative, not all 0; got {weights}")
    counts = np.bincount(labels, minlength=len(weights))
    if len(counts) > len(weights):
        raise DataError(f"got {len(weights)} class weights for {len(counts)} classes")
    per_image = np.divide(weights, counts, out=np.zeros_like(weights), where=counts > 0)
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(labels))
    # Class by class: then each class gets its exact share, rounded, and not about its share.
    order = order[np.argsort(labels[order], kind="stable")]
    reach = np.cumsum(per_image[labels[order]])
    if reach[-1] == 0:
        raise DataError(f"class weights {weights} are 0 for every class that has images")
    ticks = (generator.random() + np.arange(len(labels))) * (reach[-1] / len(labels))
    drawn = order[np.searchsorted(reach, ticks, side="right").clip(max=len(labels) - 1)]
    return generator.permutation(drawn)


def whole_batches(ids: Ids, batch_size: int, world: int) -> Ids:
    """Cut to whole batches for every rank; too few rows for one batch each are repeated instead.

    What is cut is at most one batch per rank, and other images every epoch. A training step thus
    always has the same shape, and no rank waits in vain for another one's last batch.
    """
    group = batch_size * world
    if len(ids) >= group:
        return ids[: len(ids) // group * group]
    return np.resize(ids, group)


def shard(ids: Ids, rank: int, world: int) -> Ids:
    """Return the rows of one rank: every `world`-th, so the shares of a split differ by one."""
    return ids[rank::world]


def chunk_bounds(num_rows: int, batch_size: int, largest: int, parallel: int) -> Ids:
    """Return where the chunks that tasks read begin, and the end: 0, ..., `num_rows`.

    A task costs about 25 ms of its own, so large chunks are cheaper; but the first batch waits for
    the first chunk, and at the end all `parallel` workers should finish together. So sizes grow
    from one batch to `largest` rows and shrink again. Chunks hold whole batches, which then need no
    putting together; a batch larger than `largest` is divided evenly instead. What is in a batch
    does not depend on any of this.
    """
    if batch_size > largest:
        step = -(-batch_size // -(-batch_size // largest))
        return np.append(np.arange(0, num_rows, step, dtype=np.int64), num_rows)
    bounds = [0]
    while (done := bounds[-1]) < num_rows:
        size = min(largest, done // parallel, (num_rows - done) // (2 * parallel))
        size = max(size // batch_size, 1) * batch_size
        bounds.append(min(done + size, num_rows))
    return np.array(bounds, dtype=np.int64)
