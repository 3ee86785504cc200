"""In which order the images of a split are seen: pure arithmetic on row numbers, no images.

Everything is a function of (seed, epoch), never of how many workers there are or how far one got:
so a run resumes in the middle of an epoch by passing over what was seen, also with another number
of workers, and two workers with batches of 32 see together what one sees with batches of 64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.errors import DataError

RUN_ROWS = 16  # that stay together in a shuffle of runs
MIX_ROWS = 512  # within which images of different runs are mixed

Ids = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int64]


def shuffled(num_rows: int, epoch: int, seed: int) -> Ids:
    """Return a full permutation of the row numbers, another one for every epoch."""
    return np.random.default_rng((seed, epoch)).permutation(num_rows)


def shuffled_runs(
    storage: Ids, epoch: int, seed: int, *, run: int = RUN_ROWS, mix: int = MIX_ROWS
) -> Ids:
    """Return a permutation in which `run` neighbours in storage stay close together.

    `storage` holds the row numbers in the order in which the images lie in their containers. Where
    runs begin is drawn anew for every epoch. Within `mix` rows of the result, images of
    different runs are mixed. A batch from a bucket then takes a few requests, not one per image;
    how good the shuffle is follows from how well the storage was mixed when it was packed.
    """
    num_rows = len(storage)
    generator = np.random.default_rng((seed, epoch))
    numbers = (np.arange(num_rows) + generator.integers(run)) // run
    places_of_runs = generator.permutation(int(numbers[-1]) + 1 if num_rows else 0)
    order = storage[np.argsort(places_of_runs[numbers], kind="stable")]
    window = np.arange(num_rows) // mix
    return order[np.lexsort((generator.random(num_rows), window))]


def storage_order(containers: Ids, offsets: Ids) -> Ids:
    """Return row numbers sorted by where the images lie: container after container, by offset."""
    return np.lexsort((offsets, containers)).astype(np.int64)


def weighted(weights: npt.NDArray[np.float64], epoch: int, seed: int) -> Ids:
    """Return as many row numbers as there are weights, each row drawn as often as its weight says:
    floor(x) or ceil(x) times (systematic sampling), so none is left out by chance for long.
    """
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(weights))
    return _draw(order, weights[order], generator)


def balanced(
    labels: Labels,
    class_weights: Sequence[float],
    epoch: int,
    seed: int,
    weights: npt.NDArray[np.float64] | None = None,
) -> Ids:
    """Return as many row numbers as there are labels, drawn so that classes occur by their weights.

    A class of weight 2 is seen twice as often as one of weight 1, however many images it has.
    Within a class every image is drawn floor(x) or ceil(x) times (systematic sampling), so none is
    left out by chance for long; with `weights` of the images, by those.
    """
    per_class = np.asarray(class_weights, dtype=np.float64)
    if (per_class < 0).any() or not np.isfinite(per_class).all() or per_class.sum() == 0:
        raise DataError(f"class weights must be finite, not negative, not all 0; got {per_class}")
    own = np.ones(len(labels)) if weights is None else weights
    totals = np.bincount(labels, weights=own, minlength=len(per_class))
    if len(totals) > len(per_class):
        raise DataError(f"got {len(per_class)} class weights for {len(totals)} classes")
    factor = np.divide(per_class, totals, out=np.zeros_like(per_class), where=totals > 0)
    per_image = own * factor[labels]
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(labels))
    # Class by class: then each class gets its exact share, rounded, and not about its share.
    order = order[np.argsort(labels[order], kind="stable")]
    if not per_image.any():
        raise DataError(f"class weights {per_class} are 0 for every class that has images")
    return _draw(order, per_image[order], generator)


def _draw(order: Ids, weights: npt.NDArray[np.float64], generator: np.random.Generator) -> Ids:
    """Draw as many rows as there are, each as often as its weight says, by systematic sampling."""
    reach = np.cumsum(weights)
    if not np.isfinite(reach[-1]) or reach[-1] <= 0:
        raise DataError("the weights of the training images must be finite and not all 0")
    ticks = (generator.random() + np.arange(len(order))) * (reach[-1] / len(order))
    drawn = order[np.searchsorted(reach, ticks, side="right").clip(max=len(order) - 1)]
    return generator.permutation(drawn)


def whole_batches(ids: Ids, batch_size: int, world: int, start: int = 0) -> Ids:
    """Cut to whole batches for every rank, from `start` on; too few rows for one batch each are
    repeated instead, unless some were seen already.

    What is cut is at most one batch per rank, and other images every epoch. A training step thus
    always has the same shape, and no rank waits in vain for another one's last batch.
    """
    group = batch_size * world
    if len(ids) < group and not start:
        return np.resize(ids, group)
    rest = ids[start:]
    return rest[: len(rest) // group * group]


def shard(ids: Ids, rank: int, world: int) -> Ids:
    """Return the rows of one rank: every `world`-th, so the shares of a split differ by one."""
    return ids[rank::world]


def shard_batches(ids: Ids, batch_size: int, rank: int, world: int) -> Ids:
    """Return the rows of one rank of whole batches: in each step its piece of `batch_size`, so that
    what lies together in storage is read by one rank.
    """
    return ids.reshape(-1, world, batch_size)[:, rank].reshape(-1)


def chunk_bounds(num_rows: int, batch_size: int, largest: int, parallel: int) -> Ids:
    """Return where the chunks that tasks read begin, and the end: 0, ..., `num_rows`.

    A task costs about 6 ms of its own, so large chunks are cheaper; but the first batch waits for
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
