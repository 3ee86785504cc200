"""Which split an image belongs to, from its content.

The place of an image on the line from 0 to 1 is a pure function of (SHA-256 of the file, seed), or
of (name of its group, seed): so copies of one file, and the images of one group, always land on the
same side; where a file has copies in two groups, both groups do. Stratified, each class's line is
cut where its shares are full; otherwise all are cut at the same places, and then an image never
moves when others are added or removed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from jobs.data.config import SplitConfig

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

CODES: tuple[Split, ...] = ("train", "validation", "test")

Places = npt.NDArray[np.uint64]  # (N,)

# What folders and manifests call the three splits.
SPLIT_ALIASES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def split_of_name(key: str) -> Split | None:
    """Return the split that a file's path below the source names by a word of its own, as in
    `train/7.tar` or `val-0001.tar`.
    """
    words = re.split(r"[^a-z]+", key.lower())
    found = [SPLIT_ALIASES[word] for word in words if word in SPLIT_ALIASES]
    return found[-1] if found else None


def position(digest: str, seed: int) -> float:
    """Return a number in [0, 1) that depends on the content's digest and the seed only."""
    # 53 bits are what a float holds exactly; all 64 could round up to 1.0.
    return (_mix(digest, seed) >> 11) / 2**53


def _mix(text: str, seed: int) -> int:
    """Return 64 bits that depend on both."""
    key = seed.to_bytes(16, "big", signed=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest(), "big")


def choose_split(digest: str, seed: int, *, validation: float, test: float) -> Split:
    """Return the split for one content digest.

    Test lies first on the line, validation behind it: with the same test share, no choice of the
    other two moves an image into or out of test.
    """
    place = position(digest, seed)
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


@dataclass(frozen=True)
class Shares:
    """The shares of the images that are to be test and validation; the rest is train."""

    validation: float
    test: float


def assign_splits(
    digests: Iterable[str | None],
    labels: npt.NDArray[np.integer],
    given: Sequence[str | None],
    groups: Iterable[str | None],
    config: SplitConfig,
    *,
    carves: bool = True,
) -> list[Split]:
    """Return the split per image: the source's own where it has one, else by content or group.

    A split that the source lacks altogether is carved out of its train images. So a source with
    train and test keeps its test set as it is, and its train images yield validation; one that was
    split already (not `carves`) stays as it is. An image without a split goes where the source puts
    others of its group, or copies of it.
    """
    splits: list[Split] = ["train" if own is None else SPLIT_ALIASES[own] for own in given]
    whole = Shares(config.validation, config.test)
    carved = _carved(set(given), whole) if carves else Shares(0.0, 0.0)
    is_free = np.array([own is None for own in given], dtype=bool)
    if not (carved.validation or carved.test) and not is_free.any():
        return splits
    places = _place(digests, groups, len(given), config.seed)
    if not is_free.all():
        for row, code in _given_to_others(places, is_free, splits).items():
            splits[row], is_free[row] = CODES[code], False
    is_carved = ~is_free & np.array([split == "train" for split in splits], dtype=bool)
    for rows, shares in ((np.flatnonzero(is_free), whole), (np.flatnonzero(is_carved), carved)):
        cut = _cut_classes if config.stratify else _cut_all
        for row, code in zip(rows.tolist(), cut(places[rows], labels[rows], shares), strict=True):
            splits[row] = CODES[code]
    return splits


def _place(
    digests: Iterable[str | None], groups: Iterable[str | None], count: int, seed: int
) -> Places:
    """Return the place of each image: that of its content, or of its group. All that copies link
    has one place.
    """
    # 64 bits stand for an image or its group: of a million, two are the same by chance in one of 37
    # million sets. The texts would be ten times as large.
    contents = np.empty(count, dtype=np.uint64)
    keys = np.empty(count, dtype=np.uint64)
    for row, (digest, group) in enumerate(zip(digests, groups, strict=True)):
        contents[row] = _mix(str(digest), seed)
        keys[row] = _mix(f"group {group}", seed) if group else contents[row]
    least = _least_linked(keys, contents)
    units, unit_of = np.unique(least, return_inverse=True)
    greatest = units.copy()
    np.maximum.at(greatest, unit_of, keys)
    # The least of several places is no place by chance any more.
    for unit in np.flatnonzero(greatest != units).tolist():
        units[unit] = _mix(f"linked {units[unit]}", seed)
    return units[unit_of]


def _least_linked(keys: Places, contents: Places) -> Places:
    """Return of each image the least key of all that are linked with it, by key or content."""
    links = [np.unique(of, return_inverse=True)[1] for of in (contents, keys)]
    least = keys
    while True:
        before = least
        for codes in links:
            found = np.full(codes.max(initial=0) + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
            np.minimum.at(found, codes, least)
            least = found[codes]
        if np.array_equal(least, before):
            return least


def _given_to_others(
    places: Places, is_free: npt.NDArray[np.bool_], splits: Sequence[Split]
) -> dict[int, int]:
    """Return of each row without a split, by row, the code of the one that most with its place
    have, if any.
    """
    _, unit_of = np.unique(places, return_inverse=True)
    counts = np.zeros((unit_of.max(initial=0) + 1, len(CODES)), dtype=np.int64)
    given = np.flatnonzero(~is_free)
    codes = np.array([CODES.index(splits[row]) for row in given.tolist()], dtype=np.int64)
    np.add.at(counts, (unit_of[given], codes), 1)
    most = counts.argmax(axis=1)
    follows = np.flatnonzero(is_free & (counts.sum(axis=1)[unit_of] > 0))
    return dict(zip(follows.tolist(), most[unit_of[follows]].tolist(), strict=True))


def _carved(present: set[str | None], whole: Shares) -> Shares:
    """Return what to take from the source's own train images: only splits that it has not."""
    validation = 0.0 if "validation" in present else whole.validation
    test = 0.0 if "test" in present else whole.test
    # The shares are of all images; where the other side is given, they are of what is left.
    left = 1.0 - (whole.validation - validation) - (whole.test - test)
    return Shares(validation / left, test / left)


def _cut_all(places: Places, _labels: npt.NDArray[np.integer], shares: Shares) -> list[int]:
    """Cut the line of all images where the shares end, as `choose_split` does."""
    line = (places >> np.uint64(11)) / 2**53
    codes = np.where(line < shares.test + shares.validation, 1, 0)
    codes[line < shares.test] = 2
    found: list[int] = codes.tolist()
    return found


def _cut_classes(places: Places, labels: npt.NDArray[np.integer], shares: Shares) -> list[int]:
    """Give each class its shares, to the nearest image; what has one place stays together.

    A class of four places or more (images, or groups) gives at least one to each split that has a
    share.
    """
    # Sorted: the units of a class are in the order of their places.
    units, unit_of, sizes = np.unique(places, return_inverse=True, return_counts=True)
    unit_labels = _majority(unit_of, labels, len(units))
    codes = np.zeros(len(units), dtype=np.int8)
    for label in np.unique(unit_labels):
        mine = np.flatnonzero(unit_labels == label)
        total, least = int(sizes[mine].sum()), int(len(mine) >= 4)
        # A unit belongs where its middle lies, so that a large group does not overshoot by itself.
        middles = np.cumsum(sizes[mine]) - sizes[mine] / 2
        wanted = round(total * shares.test), round(total * shares.validation)
        num_test = max(int((middles < wanted[0]).sum()), least * (shares.test > 0))
        num_validation = max(
            int((middles < sum(wanted)).sum()) - num_test, least * (shares.validation > 0)
        )
        codes[mine[num_test : num_test + num_validation]] = 1
        codes[mine[:num_test]] = 2
    found: list[int] = codes[unit_of].tolist()
    return found


def _majority(
    unit_of: npt.NDArray[np.intp], labels: npt.NDArray[np.integer], num_units: int
) -> npt.NDArray[np.int64]:
    """Return the label that most images of each unit have, the lowest of several."""
    pairs, counts = np.unique(
        np.stack([unit_of, labels.astype(np.int64)]), axis=1, return_counts=True
    )
    order = np.lexsort((-pairs[1], counts))  # the best last
    result = np.zeros(num_units, dtype=np.int64)
    result[pairs[0][order]] = pairs[1][order]
    return result
