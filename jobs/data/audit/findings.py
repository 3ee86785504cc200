"""What an audit can find, and the table that it writes.

A finding is about an image, or (without a path) about a class, a split or the whole set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from jobs.data.leave_out import ROOT

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")

# The columns of `findings.parquet`; training reads `path`, `sha256` and `leave_out`.
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("sha256", pa.string()),
        ("finding", pa.string()),
        ("severity", pa.string()),
        ("score", pa.float32()),
        ("detail", pa.string()),
        ("other_path", pa.string()),
        ("leave_out", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Kind:
    """One kind of finding: its title, how bad it is, and what to do about it."""

    title: str
    severity: Severity
    advice: str


KINDS: dict[str, Kind] = {
    # about the set
    "unlisted": Kind("The set cannot be listed", "error", "Training stops here, too."),
    "one_class": Kind("Fewer than two classes", "error", "A classifier needs two or more."),
    "unknown_label": Kind(
        "Label that the configuration has not",
        "error",
        "Training stops here: add it to data.classes, or use data.rename or data.drop.",
    ),
    "unknown_rule": Kind(
        "Rule for a label that is not there",
        "error",
        "Training stops here: correct the name in data.drop, data.merge or data.rename.",
    ),
    "empty_class": Kind("Class without an image", "error", "Add images, or remove the folder."),
    "no_training_image": Kind(
        "Class without a training image", "error", "Training refuses the set as it is."
    ),
    "too_many_broken": Kind(
        "More broken images than allowed", "error", "Repair them, or raise data.max_broken_share."
    ),
    "same_name": Kind(
        "Labels that are one label",
        "error",
        "They differ in case, width or spaces only, and training refuses them: put one of them "
        "into data.rename.",
    ),
    "similar_name": Kind(
        "Labels that may be one label",
        "warning",
        "Split between two names, neither class is learned. If they are one, use data.merge.",
    ),
    "unclear_label": Kind(
        "Labels that are no class",
        "warning",
        "A model learns them as a class of its own. Leave their images out with data.drop.",
    ),
    "augmented_orientation": Kind(
        "Augmentation destroys labels",
        "error",
        "Turned or mirrored images keep their label though it is no longer true.",
    ),
    "orientation": Kind(
        "Labels that say which way up",
        "info",
        "Keep flips and turns out of the augmentation: they make one class of another.",
    ),
    "few_images": Kind(
        "Few images of a class", "warning", "50 to 100 images a class are a start; add some."
    ),
    "could_be_more": Kind("Not many images of a class", "info", "100 a class are a good start."),
    "imbalance": Kind(
        "Classes of unequal size", "warning", "Add images of the rare class, or set balance."
    ),
    "no_held_out_image": Kind(
        "Class without a validation or test image", "warning", "Nothing will be known of it there."
    ),
    "group_across_splits": Kind(
        "Group in more than one split",
        "error",
        "The model is tested on parts that it was trained on. Give the group one split.",
    ),
    "overlapping_classes": Kind(
        "Classes that overlap",
        "warning",
        "Their images cannot be told apart well. Define them more sharply, or merge them.",
    ),
    "relative_check": Kind(
        "Check made relative to the set",
        "info",
        "It would have found most of the set, as happens with a fixed camera.",
    ),
    "model_skipped": Kind(
        "No search for wrong labels", "info", "Give a model with --bundle to make it."
    ),
    # about an image
    "broken": Kind("Broken images", "warning", "Training leaves them out. Repair or remove them."),
    "label_conflict": Kind(
        "One image under two labels",
        "error",
        "The very same file has two labels. One of them is wrong.",
    ),
    "copy_across_splits": Kind(
        "Copies in two splits",
        "error",
        "The very same file is in training and test: the figures flatter.",
    ),
    "copy": Kind("Copies", "info", "The very same file twice: it counts twice in training."),
    "near_label_conflict": Kind(
        "Near-copies under two labels", "warning", "Nearly the same picture has two labels."
    ),
    "near_copy_across_splits": Kind(
        "Near-copies in two splits",
        "warning",
        "Nearly the same picture is in training and test: give them one group, or one split.",
    ),
    "near_copy": Kind(
        "Near-copies", "info", "The same picture saved again, or the same part photographed twice."
    ),
    "mislabelled": Kind(
        "Likely wrong labels",
        "warning",
        "A model that was not shown the image says otherwise. Look at them, the first ones first.",
    ),
    "ambiguous": Kind(
        "Torn between two classes", "info", "Does your definition of the classes decide these?"
    ),
    "tiny": Kind("Tiny images", "warning", "Too few pixels to see a detail."),
    "dark": Kind("Dark images", "warning", "Hardly anything in them is bright."),
    "bright": Kind("Overexposed images", "warning", "Hardly anything in them is not white."),
    "blurry": Kind("Blurred images", "warning", "Out of focus, or moved."),
    "low_information": Kind("Images of one tone", "warning", "There is next to nothing in them."),
    "odd_aspect": Kind("Images of odd shape", "info", "Long strips: much of them may be cut off."),
    "odd_size": Kind("Images of unusual size", "info", "Much larger or smaller than the others."),
}

# What is left out by default: that which is wrong for certain, and whose loss costs nothing.
LEAVE_OUT = ("broken", "label_conflict", "copy_across_splits", "copy")


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. `score` runs from 0, the worst, to 1 where the kind has one."""

    kind: str
    detail: str
    path: str | None = None
    label: str | None = None
    split: str | None = None
    sha256: str | None = None
    score: float | None = None
    other_path: str | None = None
    leave_out: bool = False
    # Which images of the audit they are: a path may stand for several boxes.
    row: int | None = None
    other_row: int | None = None

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return KINDS[self.kind].severity


def to_table(findings: Sequence[Finding], root: str) -> pa.Table:
    """Return the findings as the table that is written, the worst kinds first."""
    columns = {name: [getattr(one, name) for one in findings] for name in SCHEMA.names[:4]}
    columns |= {
        "finding": [one.kind for one in findings],
        **{name: [getattr(one, name) for one in findings] for name in SCHEMA.names[5:]},
    }
    table = pa.table(columns, schema=SCHEMA)
    return table.replace_schema_metadata({ROOT: root.encode()})


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings by severity, then kind as in `KINDS`, then score, then path."""
    rank = {name: place for place, name in enumerate(KINDS)}
    return sorted(
        findings,
        key=lambda one: (
            SEVERITIES.index(one.severity),
            rank[one.kind],
            1.0 if one.score is None else one.score,
            one.path or "",
            one.detail,
        ),
    )


def count_kinds(findings: Iterable[Finding]) -> dict[str, int]:
    """Return how many findings there are of each kind that occurs, in the order of `KINDS`."""
    counts = Counter(one.kind for one in findings)
    return {name: counts[name] for name in KINDS if counts[name]}


def count_severities(findings: Iterable[Finding]) -> dict[Severity, int]:
    """Return how many findings there are of each severity."""
    counts = Counter(one.severity for one in findings)
    return {severity: counts[severity] for severity in SEVERITIES}
