"""Pairs of images that look nearly the same, found without comparing every image with every other.

How alike two images are is judged beside the set: of the photos of a fixed camera any two agree in
nearly every pixel, and a comparison that does not know that calls all of them duplicates. So the
fingerprints are whitened first: what all images share is taken away, and what they differ in anyway
counts as much in every direction. Two images are a pair when the rest points the same way.

Candidates come from 64 signs along random directions: images that are alike agree in nearly all of
them. They are cut into four words of 16 bits, and images with a word that differs by no or one bit
are compared: of a million images some 800 million pairs instead of 5 x 10^11.

Shape legend: N images, F numbers in a fingerprint, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

WORDS, WORD_BITS = 4, 16
BLOCK = 200_000  # candidate pairs compared at a time
# Of images in one word: with more, each is compared with its nearest along one direction only.
MOST_PARTNERS = 256
MOST_SIGNS_APART = 20  # of 64; a cosine of 0.96 gives 6 on the average
SAMPLE = 20_000  # images that say what the set looks like


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows (P, 2), the smaller first, with their likeness beside the set, (P,) 0 to 1."""

    rows: Rows
    likeness: Floats

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Limits:
    """When two images are alike, and when so many are that they are compared among themselves."""

    relative: float = 0.96
    absolute: float = 0.95
    crowd_images: int = 30
    crowd_share: float = 0.05


@dataclass(frozen=True)
class LookAlikes:
    """The pairs that count, and the rows of each crowd: images that the first comparison could
    not tell apart, and that a second one among themselves was made of.
    """

    pairs: Pairs
    crowds: list[Rows] = field(default_factory=list)


def find_look_alikes(
    fingerprints: Floats, limits: Limits, is_compared: npt.NDArray[np.bool_] | None = None
) -> LookAlikes:
    """Find the pairs among N images (N, F), or among those of them that are compared (N,); a
    fingerprint of zeros is like no other.

    Of files that are the same, one is enough: many copies would look like a crowd, and crowd out
    the partners of others.
    """
    has_one = np.any(fingerprints != 0, axis=1)
    rows = np.flatnonzero(has_one if is_compared is None else has_one & is_compared)
    pairs = _find_pairs(fingerprints, rows, limits)
    crowds = _find_crowds(pairs, len(rows), limits)
    if not crowds:
        return LookAlikes(pairs)
    crowded = np.zeros(len(fingerprints), dtype=bool)
    crowded[np.concatenate(crowds)] = True
    outside = ~crowded[pairs.rows].all(axis=1)
    kept = [Pairs(pairs.rows[outside], pairs.likeness[outside])]
    for crowd in crowds:
        inside = _find_pairs(fingerprints, crowd, limits)
        if not _find_crowds(inside, len(crowd), limits):  # else they cannot be told apart at all
            kept.append(inside)
    return LookAlikes(
        Pairs(
            np.concatenate([part.rows for part in kept]),
            np.concatenate([part.likeness for part in kept]),
        ),
        crowds,
    )


def join_rows(pairs: Rows, num_rows: int) -> npt.NDArray[np.int32]:
    """Return the number of the group of each row; rows that are joined by pairs share one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(pairs), dtype=np.int8)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(num_rows, num_rows))
    groups: npt.NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return groups


def whiten(fingerprints: Floats) -> Floats:
    """Return the fingerprints (N, F) beside what is usual in the set, of unit length."""
    from sklearn.covariance import LedoitWolf

    step = max(1, len(fingerprints) // SAMPLE)
    sample = fingerprints[::step].astype(np.float64)
    mean, spread = sample.mean(axis=0), sample.std(axis=0)
    # A direction in which nothing varies must not blow up rounding errors to differences.
    spread = np.maximum(spread, max(1e-3 * float(spread.max()), 1e-6))
    # Shrunk towards no correlation at all, the more the fewer images there are to tell of one.
    covariance = LedoitWolf(assume_centered=True).fit((sample - mean) / spread).covariance_
    values, vectors = np.linalg.eigh(covariance)
    turn = (vectors / np.sqrt(np.maximum(values, 1e-6))) / spread[:, None]
    whitened = (fingerprints - mean.astype(np.float32)) @ turn.astype(np.float32)
    lengths = np.linalg.norm(whitened, axis=1, keepdims=True)
    result: Floats = whitened / np.maximum(lengths, 1e-6)
    return result


def _find_pairs(fingerprints: Floats, rows: Rows, limits: Limits) -> Pairs:
    if len(rows) < 2:
        return Pairs(np.zeros((0, 2), np.int64), np.zeros(0, np.float32))
    mine = fingerprints[rows]
    whitened = whiten(mine)
    found: list[Rows] = []
    likeness: list[Floats] = []
    for candidates in _candidates(whitened):
        left, right = candidates[:, 0], candidates[:, 1]
        relative = np.einsum("pf,pf->p", whitened[left], whitened[right])
        near = relative >= limits.relative
        left, right, relative = left[near], right[near], relative[near]
        absolute = np.einsum("pf,pf->p", mine[left], mine[right])
        near = absolute >= limits.absolute
        found.append(np.stack([left[near], right[near]], axis=1))
        likeness.append(relative[near])
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *found])
    scores = np.concatenate([np.zeros(0, np.float32), *likeness])
    # The words of one pair may agree more than once.
    _, first = np.unique(pairs[:, 0] * len(rows) + pairs[:, 1], return_index=True)
    return Pairs(rows[pairs[first]], np.minimum(scores[first], 1).astype(np.float32))


def _candidates(whitened: Floats) -> Iterator[Rows]:
    """Yield blocks of pairs (B, 2) of rows that may be alike, the smaller row first."""
    random = np.random.default_rng(0)
    directions = random.normal(size=(whitened.shape[1], WORDS * WORD_BITS)).astype(np.float32)
    signs = whitened @ directions > 0
    packed = np.packbits(signs, axis=1).view(np.uint64)[:, 0]
    along = whitened @ directions[:, 0]
    for word in range(WORDS):
        bits = signs[:, word * WORD_BITS : (word + 1) * WORD_BITS]
        keys = bits @ (1 << np.arange(WORD_BITS))
        order = np.lexsort((along, keys))
        for block in _near_keys(keys[order], order):
            apart = np.bitwise_count(packed[block[:, 0]] ^ packed[block[:, 1]])
            yield np.sort(block[apart <= MOST_SIGNS_APART], axis=1)


def _near_keys(keys: npt.NDArray[np.int64], order: Rows) -> Iterator[Rows]:
    """Yield blocks of pairs of rows whose keys differ by at most one bit; `keys` are sorted."""
    places = np.arange(len(keys))
    starts = np.searchsorted(keys, np.arange((1 << WORD_BITS) + 1))
    # Pairs within one key: each row with those behind it.
    yield from _expand(order, places, places + 1, starts[keys + 1])
    for bit in range(WORD_BITS):
        lower = places[(keys >> bit) & 1 == 0]
        partner = keys[lower] | (1 << bit)
        yield from _expand(order, lower, starts[partner], starts[partner + 1])


def _expand(order: Rows, places: Rows, starts: Rows, ends: Rows) -> Iterator[Rows]:
    """Yield the pairs of each place with the places from its start to its end."""
    counts = np.clip(ends - starts, 0, MOST_PARTNERS)
    totals = np.cumsum(counts)
    first = 0
    while first < len(places):
        before = totals[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(totals, before + BLOCK, side="right")))
        number = counts[first:last]
        if number.any():
            left = np.repeat(places[first:last], number)
            offset = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
            right = np.repeat(starts[first:last], number) + offset
            yield np.stack([order[left], order[right]], axis=1)
        first = last


def _find_crowds(pairs: Pairs, num_rows: int, limits: Limits) -> list[Rows]:
    """Return the groups of look-alikes that are too many to be copies."""
    least = max(limits.crowd_images, int(np.ceil(limits.crowd_share * num_rows)))
    if len(pairs) < least - 1:
        return []
    names, numbered = np.unique(pairs.rows, return_inverse=True)
    groups = join_rows(numbered.reshape(-1, 2), len(names))
    sizes = np.bincount(groups)
    return [names[groups == group] for group in np.flatnonzero(sizes >= least)]
