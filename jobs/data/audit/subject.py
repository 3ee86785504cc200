"""The set under audit: its rows, labels as the data section renames them, and the splits that
training would make.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.data.audit.findings import Finding
from jobs.data.audit.measure import Measures, fill_in
from jobs.data.config import DataConfig
from jobs.data.split import SPLITS, assign_splits


@dataclass(frozen=True)
class Subject:
    """N images, the broken ones too. `splits` is "" for a broken one."""

    table: pa.Table  # the columns of `sources.SCHEMA`
    names: tuple[str, ...]
    codes: npt.NDArray[np.int32]  # (N,), position in `names`
    splits: list[str]
    measures: Measures
    mark: frozenset[str] = field(default_factory=frozenset)  # kinds that are to be left out

    def __len__(self) -> int:
        return len(self.codes)

    @cached_property
    def paths(self) -> list[str]:
        """The path of each image."""
        paths: list[str] = self.table["path"].to_pylist()
        return paths

    @cached_property
    def is_usable(self) -> npt.NDArray[np.bool_]:
        """Which images training could use, (N,)."""
        return np.array([not reason for reason in self.measures.reason], dtype=bool)

    @cached_property
    def usable(self) -> npt.NDArray[np.int64]:
        """The rows of the images that training could use."""
        return np.flatnonzero(self.is_usable)

    @cached_property
    def _has_box(self) -> npt.NDArray[np.bool_]:
        # A path does not tell one box of a photo from another: none of them is left out.
        has_box: npt.NDArray[np.bool_] = self.table["box"].is_valid().to_numpy()
        return has_box

    @cached_property
    def contents(self) -> npt.NDArray[np.int64]:
        """Of each image the first usable row with the same content and box, (N,)."""
        first: dict[tuple[str, tuple[int, ...]], int] = {}
        boxes = self.table["box"].to_pylist()  # two boxes of one photo are two images
        found = np.arange(len(self))
        for row in self.usable.tolist():
            content = self.measures.sha256[row], tuple(boxes[row] or ())
            found[row] = first.setdefault(content, row)
        return found

    @property
    def groups(self) -> list[str | None]:
        """The group of each image, where the source says."""
        groups: list[str | None] = self.table["group"].to_pylist()
        return groups

    def label(self, row: int) -> str:
        """Return the label of an image."""
        return self.names[int(self.codes[row])]

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the usable images by class and split: `counts[class][split]`."""
        found: dict[str, dict[str, int]] = {
            name: {str(split): 0 for split in SPLITS} for name in self.names
        }
        for row in self.usable.tolist():
            found[self.label(row)][self.splits[row]] += 1
        return found

    def finding(
        self,
        kind: str,
        row: int,
        detail: str,
        *,
        score: float | None = None,
        other: int | None = None,
        leave_out: bool = True,
    ) -> Finding:
        """Return a finding about one image. It is to be left out where its kind is one of `mark`,
        unless the caller says no.
        """
        return Finding(
            kind=kind,
            detail=detail,
            path=self.paths[row],
            label=self.label(row),
            split=self.splits[row] or None,
            sha256=self.measures.sha256[row] or None,
            score=score,
            other_path=None if other is None else self.paths[other],
            row=row,
            other_row=other,
            leave_out=leave_out and kind in self.mark and not self._has_box[row],
        )


def make_subject(
    table: pa.Table,
    measures: Measures,
    config: DataConfig,
    mark: Sequence[str] = (),
    *,
    carves: bool = True,
) -> Subject:
    """Put a listing and its measures together; nothing about labels or splits is refused. Without
    `carves` what the source says of splits is all there is, as in training.
    """
    encoded = table["label"].combine_chunks().dictionary_encode()
    named = [config.new_names.get(name, name) for name in encoded.dictionary.to_pylist()]
    names = tuple(dict.fromkeys([*(config.classes or ()), *sorted(set(named))]))
    number = {name: place for place, name in enumerate(names)}
    to_class = np.array([number[name] for name in named], dtype=np.int32)
    codes: npt.NDArray[np.int32] = to_class[encoded.indices.to_numpy(zero_copy_only=False)]
    table = fill_in(table, measures)
    usable = [row for row, reason in enumerate(measures.reason) if not reason]
    given, groups = table["split"].to_pylist(), table["group"].to_pylist()
    splits = [""] * len(table)
    chosen = assign_splits(
        [measures.sha256[row] for row in usable],
        codes[usable],
        [given[row] for row in usable],
        [groups[row] for row in usable],
        config.split,
        carves=carves,
    )
    for row, split in zip(usable, chosen, strict=True):
        splits[row] = split
    return Subject(table, names, codes, splits, measures, frozenset(mark))
