"""Decoded images that stay in memory from one pass to the next.

Reading and decoding is the same work in every epoch, and what it makes often fits in memory: 4,000
images of 224 x 224 take 0.6 GiB. As many are kept as there is room for; a set that is larger is
read in part, so nothing depends on whether it fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from jobs.data.order import Ids

Images = npt.NDArray[np.uint8]  # (N, H, W, 3)
Read = Callable[[Ids, Ids], Iterator[tuple[Images, Ids]]]


class KeptImages:
    """Images of one split by their row: the first that come, up to `capacity` of them."""

    def __init__(self, num_rows: int, image_shape: tuple[int, int, int], max_bytes: int) -> None:
        capacity = min(num_rows, max_bytes // int(np.prod(image_shape)))
        # The kernel gives this memory when it is written to, not before.
        self._images: Images = np.empty((capacity, *image_shape), dtype=np.uint8)
        self._slots = np.full(num_rows, -1, dtype=np.int64)  # [num_rows], -1: not kept
        self._num_kept = 0

    @property
    def num_bytes(self) -> int:
        """Return how much memory may be taken in the end."""
        return self._images.nbytes

    def keep(self, rows: Ids, images: Images) -> None:
        """Copy those that are not kept yet, as far as there is room."""
        for row, image in zip(rows.tolist(), images, strict=True):
            if self._num_kept == len(self._images):
                return
            if self._slots[row] < 0:
                self._images[self._num_kept] = image
                self._slots[row] = self._num_kept
                self._num_kept += 1

    def passed(self, ids: Ids, batch_size: int, read: Read) -> Iterator[tuple[Images, Ids]]:
        """Yield the batches of one pass over the rows `ids`: images, the caller's own, and their
        positions in `ids`. What is not kept comes from `read(rows, cuts)`, which yields as much
        for each batch k: the usable ones of `rows[cuts[k]:cuts[k + 1]]` and their positions in
        `rows`.
        """
        slots = self._slots[ids]
        (missing,) = np.nonzero(slots < 0)
        firsts = np.arange(0, len(ids) + batch_size, batch_size).clip(max=len(ids))
        batches = read(ids[missing], np.searchsorted(missing, firsts))
        for number, (images, found) in enumerate(batches):
            positions = missing[found]
            self.keep(ids[positions], images)
            first, last = firsts[number : number + 2]
            known = first + np.flatnonzero(slots[first:last] >= 0)
            if len(known):
                images, positions = self._joined(images, positions, known, slots)
            yield images, positions

    def _joined(self, images: Images, positions: Ids, known: Ids, slots: Ids) -> tuple[Images, Ids]:
        """Return images that were read and kept ones in the order of their positions."""
        if not len(positions):
            return self._images[slots[known]], known
        together = np.sort(np.concatenate([positions, known]))
        joined = np.empty((len(together), *self._images.shape[1:]), dtype=np.uint8)
        joined[np.searchsorted(together, positions)] = images
        joined[np.searchsorted(together, known)] = self._images[slots[known]]
        return joined, together
