"""What stays in memory changes how much is read, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jobs.data.kept import Images, KeptImages
from jobs.data.order import Ids

SHAPE = (2, 1, 3)
BYTES = 6


def image(row: int) -> Images:
    return np.full(SHAPE, row, dtype=np.uint8)


class Source:
    """Makes the image of a row of its number, and notes what was asked for."""

    def __init__(self, broken: set[int] | None = None) -> None:
        self.broken = broken or set()
        self.asked: list[int] = []

    def read(self, rows: Ids, cuts: Ids) -> Iterator[tuple[Images, Ids]]:
        for first, last in pairwise(cuts.tolist()):
            self.asked += rows[first:last].tolist()
            usable = [n for n in range(first, last) if int(rows[n]) not in self.broken]
            images = np.zeros((len(usable), *SHAPE), dtype=np.uint8)
            for number, position in enumerate(usable):
                images[number] = image(int(rows[position]))
            yield images, np.array(usable, dtype=np.int64)


@given(
    num_rows=st.integers(1, 40),
    capacity=st.integers(0, 50),
    batch_size=st.integers(1, 12),
    broken=st.sets(st.integers(0, 39), max_size=5),
    passes=st.lists(st.lists(st.integers(0, 39), max_size=40), min_size=1, max_size=4),
)
def test_every_pass_gives_what_reading_everything_anew_would(
    num_rows: int, capacity: int, batch_size: int, broken: set[int], passes: list[list[int]]
) -> None:
    source = Source(broken)
    kept = KeptImages(num_rows, SHAPE, capacity * BYTES)
    for drawn in passes:
        ids = np.array([row % num_rows for row in drawn], dtype=np.int64)
        batches = list(kept.passed(ids, batch_size, source.read))
        assert len(batches) == -(-len(ids) // batch_size)
        for number, (images, positions) in enumerate(batches):
            wanted = [
                n
                for n in range(number * batch_size, min((number + 1) * batch_size, len(ids)))
                if int(ids[n]) not in broken
            ]
            assert positions.tolist() == wanted
            expected = [image(int(ids[n])) for n in wanted]
            assert images.tolist() == [each.tolist() for each in expected]


def test_what_is_kept_is_read_once() -> None:
    source, kept = Source(), KeptImages(10, SHAPE, 10 * BYTES)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(10)
        list(kept.passed(order, 4, source.read))
    assert sorted(source.asked) == list(range(10))


def test_of_a_set_that_is_too_large_a_part_is_kept() -> None:
    source, kept = Source(), KeptImages(10, SHAPE, 7 * BYTES + 5)
    assert kept.num_bytes == 7 * BYTES
    order = np.arange(10)
    list(kept.passed(order, 4, source.read))
    source.asked.clear()
    list(kept.passed(order, 4, source.read))
    assert source.asked == [7, 8, 9]


def test_an_image_that_a_caller_writes_to_stays_as_it_was() -> None:
    source, kept = Source(), KeptImages(6, SHAPE, 6 * BYTES)
    for _ in range(3):
        for images, positions in kept.passed(np.arange(6), 4, source.read):
            assert images[:, 0, 0, 0].tolist() == positions.tolist()
            images[:] = 99
    assert sorted(source.asked) == list(range(6))
