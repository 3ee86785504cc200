"""Which split an image belongs to, from its content alone.

A pure function of (SHA-256 of the file, seed): so copies of one file always land on the same side,
and an image never moves when other images are added or removed. It knows nothing of labels: with
few images per class the shares per class vary, as any random split's do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

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


def position(digest: str, seed: int) -> float:
    """Return a number in [0, 1) that depends on the content's digest and the seed only."""
    key = seed.to_bytes(16, "big", signed=True)
    mixed = hashlib.blake2b(digest.encode(), digest_size=8, key=key).digest()
    # 53 bits are what a float holds exactly; all 64 could round up to 1.0.
    return (int.from_bytes(mixed, "big") >> 11) / 2**53


def choose_split(digest: str, seed: int, *, validation: float, test: float) -> Split:
    """Return the split for one content digest.

    Test lies first on the line, validation behind it: with the same test share, no choice of the
    other two moves an image into or out of test.
    """
    place = position(digest, seed)
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def assign_splits(
    digests: Sequence[str],
    given: Sequence[str | None],
    seed: int,
    *,
    validation: float,
    test: float,
) -> list[Split]:
    """Return the split per image: the source's own where it has one, else by content.

    A split that the source lacks altogether is carved out of its train images. So a source with
    train and test keeps its test set as it is, and its train images yield validation.
    """
    present = {split for split in given if split is not None}
    carved_validation = 0.0 if "validation" in present else validation
    carved_test = 0.0 if "test" in present else test
    # The shares are of all images; where the other side is given, they are of what is left.
    left = 1.0 - (validation - carved_validation) - (test - carved_test)
    splits: list[Split] = []
    for digest, own in zip(digests, given, strict=True):
        if own is None:
            splits.append(choose_split(digest, seed, validation=validation, test=test))
        elif own == "train":
            splits.append(
                choose_split(
                    digest, seed, validation=carved_validation / left, test=carved_test / left
                )
            )
        else:
            splits.append(SPLIT_ALIASES[own])
    return splits
