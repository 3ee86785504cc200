"""In which order the rows of earlier runs and of this one stand in the output: that of the listing.

A resumed run goes through the listing again. For each image it notes whether an earlier run has its
row, and which, or whether the row is one of its own, which come in the order of the listing. Rows
that stand together are one note of 16 bytes, so a run that was killed once takes two of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

OWN = -1


class Stretch(NamedTuple):
    """Rows that follow one another: of earlier runs from `start` on, or the next own ones."""

    start: int  # `OWN` for own rows
    length: int


class Order:
    """Notes of one run, made while its listing goes on."""

    def __init__(self, num_earlier: int) -> None:
        self._starts = array("q")
        self._lengths = array("q")
        self._is_placed = np.zeros(num_earlier, bool)

    def add_earlier(self, row: int) -> None:
        """Place a row of an earlier run, counted through all of them."""
        self._is_placed[row] = True
        if self._starts and self._starts[-1] != OWN:
            follows = self._starts[-1] + self._lengths[-1]
            if follows == row:
                self._lengths[-1] += 1
                return
        self._begin(row)

    def add_own(self) -> None:
        """Place the next row of this run."""
        if self._starts and self._starts[-1] == OWN:
            self._lengths[-1] += 1
        else:
            self._begin(OWN)

    def stretches(self) -> Iterator[Stretch]:
        """Yield all rows in their order; last those whose images are not listed any more."""
        for start, length in zip(self._starts, self._lengths, strict=True):
            yield Stretch(start, length)
        gone = np.flatnonzero(~self._is_placed)
        for stretch in np.split(gone, np.flatnonzero(np.diff(gone) != 1) + 1):
            if len(stretch):
                yield Stretch(int(stretch[0]), len(stretch))

    def _begin(self, start: int) -> None:
        self._starts.append(start)
        self._lengths.append(1)
