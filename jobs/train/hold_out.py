"""Classes that a model is judged by and never sees in training: whether vectors tell apart what
nobody had thought of when they were learnt.

All images of such a class are taken out of every split, so none of them chooses an epoch either.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.data.index import Index
from jobs.data.split import position
from models.errors import ConfigError, DataError

HELD_OUT = "test"  # the split that the images of held-out classes have
LEAST = 2  # classes on either side: among images of one, any answer would be right


@dataclass(frozen=True)
class Divided:
    """An index of the classes to train on, and one of those held out, if any: all its images are in
    the split `HELD_OUT`.
    """

    trained: Index
    held_out: Index | None


def hold_out(index: Index, wanted: Sequence[str] | float, seed: int) -> Divided:
    """Divide an index by class: by names, or a share of the classes, rounded, which their names and
    the seed choose, whatever order they come in.

    Raises `ConfigError` for a name that is no class, and `DataError` if fewer than two classes
    would be left on either side.
    """
    names = _chosen(index.classes, wanted, seed) if isinstance(wanted, float) else tuple(wanted)
    _check(index.classes, names)
    if not wanted:
        return Divided(index, None)
    kept = tuple(name for name in index.classes if name not in names)
    for side, classes in (("held out", names), ("left to train on", kept)):
        if len(classes) < LEAST:
            raise DataError(
                f"embedding.held_out_classes {wanted!r}: {len(classes)} of {len(index.classes)} "
                f"classes would be {side}, and at least {LEAST} are needed on either side; "
                f"{_advice(index, wanted)}"
            )
    held_out = _only(index, tuple(name for name in index.classes if name in names))
    splits = pa.array([HELD_OUT] * held_out.table.num_rows, pa.string())
    column = held_out.table.column_names.index("split")
    table = held_out.table.set_column(column, held_out.table.schema.field("split"), splits)
    return Divided(_only(index, kept), replace(held_out, table=table, quarantine=(), warnings=()))


def _advice(index: Index, wanted: Sequence[str] | float) -> str:
    total = len(index.classes)
    if total < 2 * LEAST:
        return f"add classes, or set it to 0 to hold out none: there must be {2 * LEAST} to divide"
    if isinstance(wanted, float):
        low, high = LEAST / total, (total - LEAST) / total
        return f"give a share from {low:.2g} to {high:.2g}, or 0 to hold out none, or add classes"
    return f"name {LEAST} to {total - LEAST} of them, or add classes"


def _chosen(classes: Sequence[str], share: float, seed: int) -> tuple[str, ...]:
    order = sorted(classes, key=lambda name: position(name, seed))
    return tuple(order[: round(share * len(classes))])


def _check(classes: Sequence[str], names: Sequence[str]) -> None:
    for name in names:
        if name not in classes:
            near = difflib.get_close_matches(name, classes, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                f"embedding.held_out_classes names {name!r}, which is no class of the images; "
                f"{hint}there are {', '.join(map(repr, classes))}"
            )


def _only(index: Index, classes: tuple[str, ...]) -> Index:
    """Return the index of some classes alone, numbered anew."""
    numbers = np.full(len(index.classes), -1, dtype=np.int32)
    for number, name in enumerate(classes):
        numbers[index.classes.index(name)] = number
    labels = numbers[index.table["label"].to_numpy()]
    table = index.table.filter(pa.array(labels >= 0))
    field = table.schema.field("label")
    column = table.column_names.index("label")
    table = table.set_column(column, field, pa.array(labels[labels >= 0], field.type))
    return replace(index, table=table.combine_chunks(), classes=classes)


def refuse_lonely(index: Index, split: str) -> None:
    """Raise `DataError` where no image of a split has another one of its class to find."""
    if not has_pair(index, split):
        raise lonely(index.num_images(split), len(index.classes), split)


def has_pair(index: Index, split: str) -> bool:
    """Say whether a class has two images in a split."""
    labels = index.table.filter(pc.equal(index.table["split"], split))["label"].to_numpy()
    return len(labels) > 0 and bool((np.bincount(labels) > 1).any())


def lonely(num_images: int, num_classes: int, split: str) -> DataError:
    """Return the error of a split in which nothing can be found."""
    return DataError(
        f"no class has two {split} images, so none can find another: {num_images} images of "
        f"{num_classes} classes; add images, or change data.split"
    )
