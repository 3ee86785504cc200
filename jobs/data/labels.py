"""From the label names of a source to numbered classes, with the mistakes that names invite.

The rules come first (drop, merge, rename), then the checks: names that look alike, a single class,
a class that only occurs outside of train.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.config import quoted
from jobs.data.config import DataConfig
from models.errors import DataError
from models.labels import LONGEST_NAME, UNKNOWN_NAME, find_name_fault, fold

Labels = npt.NDArray[np.int32]


def drop_labels(table: pa.Table, config: DataConfig, *, is_strict: bool = True) -> pa.Table:
    """Return the rows of a listing without those of the labels that the config drops; where it is
    not strict, labels that the listing has not are no mistake.
    """
    if not config.drop:
        return table
    if is_strict:
        _check_rules(config, table["label"].unique().to_pylist())
    return table.filter(pc.invert(pc.is_in(table["label"], pa.array(config.drop))))


def refuse_empty(uri: str, empty: Sequence[str]) -> None:
    """Raise `DataError` where there are class folders without an image."""
    if empty:
        raise DataError(
            f"class folder without an image in {uri}: {_joined(empty)}; add images, or remove the "
            "folder"
        )


def number_labels(
    table: pa.Table, config: DataConfig, known: Sequence[str] | None = None
) -> tuple[Labels, tuple[str, ...]]:
    """Return the class number of every row of a listing, and the classes in their order: that of
    the config, else of the `known` ones, else of their names.
    """
    encoded = table["label"].combine_chunks().dictionary_encode()
    found: list[str] = encoded.dictionary.to_pylist()
    _check_rules(config, [*found, *config.drop])
    new_names = config.new_names
    named = [new_names.get(name, name) for name in found]
    _refuse_lookalikes(config.uri, named)
    if config.classes is not None:
        classes = tuple(config.classes)
    else:
        renamed = dict.fromkeys(new_names.get(name, name) for name in known or ())
        classes = tuple(dict.fromkeys(name for name in (*renamed, *sorted(named)) if name in named))
    _refuse_unknown(config, named, classes)
    if len(set(named)) < 2:
        only = f"one class only, {named[0]!r}" if named else "no class left after data.drop"
        raise DataError(
            f"{config.uri} has {only}; a classifier needs two or more (is data.uri one level too "
            "deep?)"
        )
    number = {name: position for position, name in enumerate(classes)}
    to_class = np.array([number[name] for name in named], dtype=np.int32)
    labels: Labels = to_class[encoded.indices.to_numpy(zero_copy_only=False)]
    _refuse_untrained(config.uri, table, labels, classes)
    return labels, classes


def refuse_unservable(uri: str, classes: Sequence[str]) -> None:
    """Raise `DataError` for classes whose names no label map can have, which would show only when
    the trained model is judged and published.
    """
    for name in classes:
        fault = find_name_fault(name)
        if fold(name) == UNKNOWN_NAME:
            fault = "is what a served model answers where it does not know"
        if fault:
            shown = name if len(name) <= LONGEST_NAME else f"{name[:40]}..."
            raise DataError(
                f"{uri} has the label {shown!r}, which {fault}; give it another name with "
                f"data.rename: {{{quoted(name)}: other}}, or leave its images out with data.drop"
            )


def find_wrong_rules(config: DataConfig, found: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with each rule about a label that is not among those of the source: it is
    a typing error.
    """
    rules = [("drop", name) for name in config.drop]
    rules += [("merge", old) for names in config.merge.values() for old in names]
    rules += [("rename", old) for old in config.rename]
    for rule, name in rules:
        if name not in found:
            yield (
                f"data.{rule} names the label {name!r}, which {config.uri} has not"
                f"{_hint(name, found)}"
            )


def _check_rules(config: DataConfig, found: Sequence[str]) -> None:
    for wrong in find_wrong_rules(config, found):
        raise DataError(wrong)


def _hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; it has {_some(known)}"


def _refuse_lookalikes(uri: str, named: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name in sorted(set(named)):
        other = seen.setdefault(fold(name), name)
        if other != name:
            # Two encodings of one accent are the same to see, so their code points are shown.
            is_same = unicodedata.normalize("NFC", other) == unicodedata.normalize("NFC", name)
            show = quoted if is_same else repr
            raise DataError(
                f"{uri} has the labels {show(other)} and {show(name)}, which look like one label; "
                f"if they are, set data.rename: {{{quoted(name)}: {quoted(other)}}}, else give one "
                "of them a distinct name there"
            )


def _refuse_unknown(config: DataConfig, named: Sequence[str], classes: Sequence[str]) -> None:
    unknown = sorted(set(named) - set(classes))
    if unknown:
        near = {name: difflib.get_close_matches(name, classes, n=1) for name in unknown}
        hints = [f"{name!r} is near {found[0]!r}" for name, found in near.items() if found]
        raise DataError(
            f"{config.uri} has labels that data.classes does not list: {_some(unknown)}"
            f"{f' ({_joined(hints)})' if hints else ''}; add them there, map them to a class with "
            "data.rename, or leave their images out with data.drop"
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
    return _joined([repr(name) for name in names], shown)


def _joined(texts: Sequence[str], shown: int = 10) -> str:
    more = f" and {len(texts) - shown} more" if len(texts) > shown else ""
    return ", ".join(texts[:shown]) + more
