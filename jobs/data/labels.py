"""From the label names of a source to numbered classes, with the mistakes that names invite.

Renames come first, then the checks: names that look alike, a single class, a class that only occurs
outside of train.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.data.config import DataConfig
from models.errors import DataError
from models.labels import fold

Labels = npt.NDArray[np.int32]


def number_labels(table: pa.Table, config: DataConfig) -> tuple[Labels, tuple[str, ...]]:
    """Return the class number of every row of a listing, and the classes in their order."""
    encoded = table["label"].combine_chunks().dictionary_encode()
    found: list[str] = encoded.dictionary.to_pylist()
    _check_renames(config, found)
    named = [config.rename.get(name, name) for name in found]
    _refuse_lookalikes(config.uri, named)
    classes = tuple(config.classes) if config.classes is not None else tuple(sorted(set(named)))
    _refuse_unknown(config, named, classes)
    if len(set(named)) < 2:
        raise DataError(
            f"{config.uri} has one class only, {named[0]!r}; a classifier needs two or more (is "
            "data.uri one level too deep?)"
        )
    number = {name: position for position, name in enumerate(classes)}
    to_class = np.array([number[name] for name in named], dtype=np.int32)
    labels: Labels = to_class[encoded.indices.to_numpy(zero_copy_only=False)]
    _refuse_untrained(config.uri, table, labels, classes)
    return labels, classes


def _check_renames(config: DataConfig, found: Sequence[str]) -> None:
    for old in config.rename:
        if old not in found:
            near = difflib.get_close_matches(old, found, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {_some(found)}"
            raise DataError(
                f"data.rename names the label {old!r}, which {config.uri} has not{hint}"
            )


def _refuse_lookalikes(uri: str, named: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name in sorted(set(named)):
        other = seen.setdefault(fold(name), name)
        if other != name:
            raise DataError(
                f"{uri} has the labels {other!r} and {name!r}, which look like one label; if they "
                f"are, set data.rename: {{{name!r}: {other!r}}}, else give one of them a "
                "distinct name there"
            )


def _refuse_unknown(config: DataConfig, named: Sequence[str], classes: Sequence[str]) -> None:
    unknown = sorted(set(named) - set(classes))
    if unknown:
        raise DataError(
            f"{config.uri} has labels that data.classes does not list: {_some(unknown)}; add them "
            "there, or map them to a class with data.rename"
        )


def _refuse_untrained(uri: str, table: pa.Table, labels: Labels, classes: Sequence[str]) -> None:
    """Raise when the source's own test or validation split has a class that its train lacks."""
    held_out = pc.is_in(table["split"], pa.array(["validation", "test"]))
    is_held_out = pc.fill_null(held_out, False).to_numpy()
    missing = set(labels[is_held_out].tolist()) - set(labels[~is_held_out].tolist())
    if missing:
        names = _some(sorted(classes[number] for number in missing))
        raise DataError(
            f"{uri} has classes outside of train that train lacks: {names}; add images of them to "
            "train, or rename them with data.rename"
        )


def _some(names: Sequence[str], shown: int = 10) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(repr, names[:shown])) + more
