"""What a new label map would do: stored validation outputs, read through the old map and the new.

An image counts as right when the label that gathers its true output is answered. One whose label is
hidden is never right: what is answered is `unknown`. Pure: no store, no engine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.label_map import UNKNOWN, Reading
from models.validation_outputs import ValidationOutputs


@dataclass(frozen=True)
class Figures:
    """Figures of some images, each from 0 to 1."""

    num_images: int
    accuracy: float | None  # right ones among those answered with a label; None if none is
    coverage: float  # share answered with a label
    unknown: float  # share answered `unknown`
    right: float  # share answered with the right label


@dataclass(frozen=True)
class LabelFigures:
    """The images of one label, before and after; None where the label does not gather any."""

    id: str
    label: str  # its name after, or before where it is gone
    before: Figures | None
    after: Figures | None


@dataclass(frozen=True)
class WhatIf:
    """The whole comparison."""

    split: str
    num_images: int
    before: Figures
    after: Figures
    labels: tuple[LabelFigures, ...]


def compare(outputs: ValidationOutputs, before: Reading, after: Reading) -> WhatIf | None:
    """Return what changes between two readings, or None without an image to tell by."""
    if not len(outputs.truth):
        return None
    was, total_before = _figures(outputs, before)
    now, total_after = _figures(outputs, after)
    names = {label.id: label.name for label in after.label_map.living}
    for label in before.label_map.living:
        names.setdefault(label.id, label.name)
    labels = tuple(LabelFigures(id, names[id], was.get(id), now.get(id)) for id in names)
    return WhatIf(outputs.split, len(outputs.truth), total_before, total_after, labels)


def _figures(outputs: ValidationOutputs, reading: Reading) -> tuple[dict[str, Figures], Figures]:
    """Return the figures of each living label that has images, by id, and of all images."""
    answers = reading.winners(outputs.probabilities)
    truth = reading.owners[outputs.truth]
    of_label = {
        label.id: _count(answers[truth == position], position)
        for position, label in enumerate(reading.label_map.living)
        if (truth == position).any()
    }
    return of_label, _count(answers, truth)


def _count(answers: npt.NDArray[np.intp], truth: npt.NDArray[np.intp] | int) -> Figures:
    count = len(answers)
    answered = int((answers != UNKNOWN).sum())
    right = int((answers == truth).sum())
    return Figures(
        num_images=count,
        accuracy=right / answered if answered else None,
        coverage=answered / count,
        unknown=(count - answered) / count,
        right=right / count,
    )
