"""From the labels of a source to those of a model: by name, without guessing.

A source may lack classes of the model, but may have no others. How a label map renames and merges
is followed: an alias, or the name of a label that was merged away, leads to the label that holds
its images now.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.data.config import DataConfig
from jobs.data.labels import Labels
from jobs.data.split import SPLIT_ALIASES
from models.errors import DataError, LabelMapError
from models.label_map import Reading, survivor
from models.labels import fold

SHOWN = 10


class LabelMatcher:
    """Numbers the labels of a listing as a reading has them, and keeps what it saw of them."""

    def __init__(
        self, model: str, reading: Reading, *, split: str | None = None, hint: str = ""
    ) -> None:
        """`model` is its name in messages, `split` which images are wanted (None: test where the
        source has splits), `hint` what else may make a stranger known.
        """
        self._model, self._reading, self._hint = model, reading, hint
        self._split = split
        self.names = tuple(label.name for label in reading.label_map.living)
        self.sources: dict[int, set[str]] = {}  # the source's labels of each of ours
        self.has_splits = False  # the source says of some images which split they are of
        self.notes: list[str] = []

    def __call__(
        self, table: pa.Table, config: DataConfig
    ) -> tuple[pa.Table, Labels, tuple[str, ...]]:
        """Return the rows that need to be read, their numbers, and the model's labels.

        Raises `DataError` for labels that the model does not have, each with the nearest it has.
        """
        self.has_splits = table["split"].null_count < len(table)
        table = self._wanted(table)
        encoded = table["label"].combine_chunks().dictionary_encode()
        found: list[str] = encoded.dictionary.to_pylist()
        named = [config.new_names.get(name, name) for name in found]
        numbers = self.numbers(named, config.uri)
        for number, name in zip(numbers.tolist(), named, strict=True):
            self.sources.setdefault(number, set()).add(name)
            if self.names[number] != name:
                self.notes.append(f"images of {name!r} count as {self.names[number]!r}")
        labels: Labels = numbers[encoded.indices.to_numpy(zero_copy_only=False)]
        return table, labels, self.names

    def _wanted(self, table: pa.Table) -> pa.Table:
        """Return the rows of a split that the source itself gives to all its images: the others
        need not be read. What is carved out of train depends on all of them.
        """
        wanted = self._split or "test"
        if wanted not in ("validation", "test") or table["split"].null_count:
            return table
        names = [name for name, split in SPLIT_ALIASES.items() if split == wanted]
        is_wanted = pc.is_in(table["split"], pa.array(names))
        return table.filter(is_wanted) if pc.any(is_wanted).as_py() else table

    def numbers(self, named: Sequence[str], where: str) -> Labels:
        """Return the number of each name. Raises `DataError` for those that the model has not."""
        places = {name: self._find(name) for name in named}
        strangers = sorted(name for name, place in places.items() if place is None)
        if strangers:
            raise DataError(
                f"{where} has labels that {self._model} does not know: {self._explain(strangers)}; "
                "map them to one of its classes with data.rename, or leave their images out with "
                f"data.drop{self._hint}"
            )
        return np.array([places[name] for name in named], dtype=np.int32)

    def _find(self, name: str) -> int | None:
        if name in self.names:
            return self.names.index(name)
        label_map = self._reading.label_map
        try:
            label = label_map.find(name)
        except LabelMapError:
            return None
        holder = survivor(label_map, label)
        return None if holder is None else label_map.living.index(holder)

    def _explain(self, strangers: Sequence[str]) -> str:
        known = {fold(name): name for name in self.names}
        parts = []
        for name in strangers[:SHOWN]:
            near = difflib.get_close_matches(fold(name), known, n=1)
            parts.append(f"{name!r}" + (f" (nearest: {known[near[0]]!r})" if near else ""))
        more = f" and {len(strangers) - SHOWN} more" if len(strangers) > SHOWN else ""
        kinds = ", ".join(map(repr, self.names[:SHOWN]))
        rest = f" and {len(self.names) - SHOWN} more" if len(self.names) > SHOWN else ""
        return f"{', '.join(parts)}{more}. It has {kinds}{rest}"
