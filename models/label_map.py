"""What the outputs of a classifier are called, and which of them count as one label: a value that
never changes.

A map covers every output of its model exactly once. It is bound to outputs by their ids, so a model
whose outputs come in another order keeps its map. A label that is merged away or left out stays in
the map as `retired`, since its id is never used again; a hidden one still gathers its outputs, but
an image that it wins is answered `unknown`, never with the runner-up.

Pure: no store, no HTTP. How a map is changed is in `label_edits`, where it is kept in `label_log`.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.errors import LabelMapError
from models.labels import (
    LONGEST_NAME,
    UNKNOWN_NAME,
    Answer,
    OutputClass,
    Score,
    Scores,
    find_name_fault,
    fingerprint,
    fold,
)

Status = Literal["active", "hidden", "retired"]
UNKNOWN = -1  # the position of no label, in `Reading.winners`
Probability = npt.NDArray[np.float32]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Label(_Frozen):
    """One label. `outputs` are ids of the model's outputs; of a retired label those it gave away,
    to the label `merged_into`.
    """

    id: str = Field(min_length=1, max_length=LONGEST_NAME)
    name: str = Field(min_length=1, max_length=LONGEST_NAME)
    aliases: tuple[str, ...] = ()
    status: Status = "active"
    outputs: tuple[str, ...] = ()
    threshold: float | None = Field(None, ge=0, le=1, description="the map's, if unset")
    merged_into: str | None = None


class LabelMap(_Frozen):
    """All labels of a model, in the order in which they are listed; none for one without
    classes.
    """

    fingerprint: str  # of the model's outputs, `models.labels.fingerprint`
    labels: tuple[Label, ...]
    unknown: str = Field(UNKNOWN_NAME, min_length=1, max_length=LONGEST_NAME)
    threshold: float = Field(0.0, ge=0, le=1, description="below it the answer is `unknown`")

    @cached_property
    def by_id(self) -> Mapping[str, Label]:
        """The labels by their ids."""
        return {label.id: label for label in self.labels}

    @property
    def living(self) -> tuple[Label, ...]:
        """The labels that gather outputs: all but the retired ones."""
        return tuple(label for label in self.labels if label.status != "retired")

    def find(self, word: str) -> Label:
        """Return the label of that id, else of that name or alias; names are compared folded, and
        those of living labels first. Raises `LabelMapError` if there is none.
        """
        if word in self.by_id:
            return self.by_id[word]
        wanted = fold(word)
        for label in (*self.living, *(each for each in self.labels if each.status == "retired")):
            if wanted in map(fold, (label.name, *label.aliases)):
                return label
        raise LabelMapError(f"no label {word!r}")


def identity_map(classes: Sequence[OutputClass]) -> LabelMap:
    """Return the map that a model begins with: one label for each output, of the same id and
    name.
    """
    return LabelMap(
        fingerprint=fingerprint(classes),
        labels=tuple(Label(id=each.id, name=each.name, outputs=(each.id,)) for each in classes),
    )


def parse_map(value: object, thing: str) -> LabelMap:
    """Read a map from JSON values, or raise `LabelMapError` with all that is wrong with it."""
    try:
        return LabelMap.model_validate(value)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()
        )
        raise LabelMapError(f"{thing} is no label map: {wrong}") from error


def check_map(label_map: LabelMap, classes: Sequence[OutputClass]) -> None:
    """Raise `LabelMapError` with everything that is wrong with a map for the outputs of a model."""
    wrong = [*_misbound(label_map, classes), *_misnamed(label_map), *_mislinked(label_map)]
    if wrong:
        raise LabelMapError("; ".join(wrong))


def lookalikes(label_map: LabelMap) -> list[str]:
    """Return a sentence on each name that mixes alphabets, as a Cyrillic letter among Latin ones
    does: it looks like another name and is none.
    """
    found = []
    for label in label_map.living:
        for name in (label.name, *label.aliases):
            alphabets = {_alphabet(letter) for letter in name if letter.isalpha()}
            if len(alphabets & {"LATIN", "CYRILLIC", "GREEK"}) > 1:
                mixed = ", ".join(sorted(alphabet.title() for alphabet in alphabets))
                found.append(f"{name!r} mixes letters of several alphabets: {mixed}")
    return found


def _misbound(label_map: LabelMap, classes: Sequence[OutputClass]) -> Iterator[str]:
    if label_map.fingerprint != fingerprint(classes):
        yield (
            f"the map is for a model with other outputs (fingerprint {label_map.fingerprint}, the "
            f"model's is {fingerprint(classes)})"
        )
        return
    covered = Counter(output for label in label_map.living for output in label.outputs)
    for each in classes:
        if covered[each.id] != 1:
            yield f"output {each.id!r} belongs to {covered[each.id]} labels; expected exactly one"
    strangers = sorted(set(covered) - {each.id for each in classes})
    if strangers:
        yield f"the model has no output {', '.join(map(repr, strangers))}"
    for label in label_map.living:
        if not label.outputs:
            yield f"label {label.name!r} gathers no output; merge it into another label instead"
    if classes and all(label.status != "active" for label in label_map.labels):
        yield "no label is active: every image would be answered 'unknown'"


def _misnamed(label_map: LabelMap) -> Iterator[str]:
    owner = {fold(label_map.unknown): "the answer for what is not known"}
    for label in label_map.living:
        for name in (label.name, *label.aliases):
            if fault := find_name_fault(name):
                yield f"{name!r} {fault}"
            other = owner.setdefault(fold(name), f"label {label.id!r}")
            if other != f"label {label.id!r}":
                yield f"{name!r} is a name of label {label.id!r} and of {other}"
        if len({*map(fold, (label.name, *label.aliases))}) <= len(label.aliases):
            yield f"label {label.id!r} has a name twice"


def _mislinked(label_map: LabelMap) -> Iterator[str]:
    if len(label_map.by_id) < len(label_map.labels):
        yield "a label id is used twice"
    for label in label_map.labels:
        if (label.merged_into is not None) != (label.status == "retired"):
            yield f"label {label.id!r} is {label.status}, but merged into {label.merged_into!r}"
        elif label.merged_into is not None and survivor(label_map, label) is None:
            yield f"label {label.id!r} is merged into {label.merged_into!r}, which leads nowhere"


def survivor(label_map: LabelMap, label: Label) -> Label | None:
    """Return the living label that holds what a label once held, or None where merges run in a
    circle or into nothing.
    """
    seen: set[str] = set()
    while label.merged_into is not None:
        if label.id in seen or label.merged_into not in label_map.by_id:
            return None
        seen.add(label.id)
        label = label_map.by_id[label.merged_into]
    return label


def _alphabet(letter: str) -> str:
    return unicodedata.name(letter, "UNNAMED").split()[0]


class Reading:
    """A map made ready to read the probabilities of one model: what a replica holds. Immutable."""

    def __init__(self, label_map: LabelMap, classes: Sequence[OutputClass], revision: int) -> None:
        """Raises `LabelMapError` for a map that is not one of this model."""
        check_map(label_map, classes)
        self.label_map, self.revision = label_map, revision
        self._labels = label_map.living
        of_output = {
            output: position
            for position, label in enumerate(self._labels)
            for output in label.outputs
        }
        # Of each output the position of its label, (C,).
        self.owners = np.array([of_output[each.id] for each in classes], dtype=np.intp)
        self._thresholds = np.array(
            [
                label_map.threshold if label.threshold is None else label.threshold
                for label in self._labels
            ]
        )
        self._is_active = np.array([label.status == "active" for label in self._labels])
        # As Python has them, for one image at a time: a label or two are no work for NumPy.
        self._names = [label.name for label in self._labels]
        self._least: list[float] = self._thresholds.tolist()
        self._shows: list[bool] = self._is_active.tolist()
        self._shows_all = all(self._shows)

    @property
    def num_listed(self) -> int:
        """How many labels an answer can list."""
        return int(self._is_active.sum())

    def sums(self, probabilities: Probability) -> npt.NDArray[np.float64]:
        """Return one probability per living label (L,) from those of the outputs (C,)."""
        totals = np.bincount(self.owners, weights=probabilities, minlength=len(self._labels))
        return totals.astype(np.float64, copy=False)

    def winners(self, probabilities: Probability) -> npt.NDArray[np.intp]:
        """Return for each row (N, C) the position of the label that is answered, or `UNKNOWN`; the
        same answers that `read` gives.
        """
        order = np.argsort(self.owners, kind="stable")
        starts = np.searchsorted(self.owners[order], np.arange(len(self._labels)))
        sums = np.add.reduceat(probabilities[:, order].astype(np.float64), starts, axis=1)
        best = sums.argmax(axis=1)
        is_known = self._is_active[best] & (
            sums[np.arange(len(sums)), best] >= self._thresholds[best]
        )
        return np.where(is_known, best, UNKNOWN)

    def read(self, probabilities: Probability, *, top_k: int = 5, scores: Scores = "top") -> Answer:
        """Answer for one image from the probabilities of the outputs (C,).

        The winner is the label with the largest sum. It is answered `unknown` where it is hidden or
        below its threshold; `confidence` is its probability all the same. Hidden labels are not
        listed among the scores.
        """
        sums = self.sums(probabilities)
        values: list[float] = sums.tolist()
        best = int(sums.argmax())
        listed: tuple[Score, ...] = ()
        if scores != "none":
            order: list[int] = (-sums).argsort(kind="stable").tolist()
            shown = order if self._shows_all else [i for i in order if self._shows[i]]
            most = top_k if scores == "top" else len(shown)
            listed = tuple(Score(self._names[i], values[i], i) for i in shown[:most])
        is_known = self._shows[best] and values[best] >= self._least[best]
        return Answer(
            self._names[best] if is_known else self.label_map.unknown, values[best], listed
        )


def first_reading(classes: Sequence[OutputClass]) -> Reading:
    """Return the reading that a model begins with: its own classes, revision 0."""
    return Reading(identity_map(classes), classes, 0)
