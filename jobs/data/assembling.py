"""Chunks, as tasks read them, cut into batches, as training asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from jobs.data.chunks import Columns
from jobs.data.kept import Images
from jobs.data.order import Ids

NO_IMAGES: Images = np.empty((0, 0, 0, 3), dtype=np.uint8)
NO_IDS: Ids = np.empty(0, dtype=np.int64)


def assemble(chunks: Iterator[Columns], cuts: Ids) -> Iterator[tuple[Images, Ids]]:
    """Cut chunks into batches by position: batch k holds the usable ones of positions `cuts[k]` to
    `cuts[k + 1]`, the last not included.

    Yields images and positions. Every batch comes, also one that has no images, or lost them.
    """
    end = 0
    for first, last in pairwise(cuts.tolist()):
        images: list[Images] = []
        positions: list[Ids] = []
        lower = first
        while lower < last:
            if lower == end:
                columns = next(chunks)
                start, end = end, end + len(columns["id"])
                is_usable = columns["reason"] == ""
            upper = min(last, end)
            kept = np.flatnonzero(is_usable[lower - start : upper - start]) + (lower - start)
            images.append(_own(columns["image"], kept))
            positions.append(kept + start)
            lower = upper
        if len(images) == 1:
            yield images[0], positions[0]
        elif images:
            yield np.concatenate(images), np.concatenate(positions)
        else:
            yield NO_IMAGES, NO_IDS


def _own(images: Images, kept: Ids) -> Images:
    """Return these images as an array of the caller's own: without a copy where it is one."""
    if images.flags.writeable and len(kept) and len(kept) == kept[-1] - kept[0] + 1:
        return images[kept[0] : kept[-1] + 1]
    return images[kept]
