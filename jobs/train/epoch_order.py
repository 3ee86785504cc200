"""What decides which training images an epoch takes, and in which order: a shuffle, or what images
are drawn by instead of one.
"""

from __future__ import annotations

import hashlib

import pyarrow.compute as pc

from jobs.data.index import Index
from jobs.data.streams import IndexedImages, StreamOptions
from jobs.train.config import TrainConfig


def drawn_by(config: TrainConfig, index: Index) -> str | None:
    """Return what training images are drawn by where the whole network learns, which leaves nothing
    for `data.shuffle` to do; None where they are shuffled.
    """
    if config.images_per_class is not None:
        return "embedding.objective: supcon"
    if config.balance == "sampling":
        return "balance: sampling"
    rows = index.table.select(["split", "weight"])
    rows = rows.filter(pc.equal(rows["split"], "train"))
    return "the weights of the images" if rows["weight"].null_count < rows.num_rows else None


def shuffle_of(config: TrainConfig, index: Index) -> str:
    """Return the way of shuffling in effect: `images`; `runs` with a digest of how images lie in
    their containers, by which runs are made; `drawn` or `frozen` where nothing is shuffled.
    """
    if config.network.freeze == "backbone":
        return "frozen"
    if drawn_by(config, index) is not None:
        return "drawn"
    images = IndexedImages(index, config.preprocess, StreamOptions.from_config(config.data))
    if images.shuffle_in_effect("train") == "images":
        return "images"
    ids = images.order("train", batch_size=1, seed=config.seed, shuffle=True)
    return f"runs, laid out as {hashlib.sha256(ids.tobytes()).hexdigest()[:16]}"
