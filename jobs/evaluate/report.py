"""What an evaluation gives, as one value: for the page, the card, JSON, and a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.data.quarantine import Broken
from jobs.evaluate.calibration import Calibration
from jobs.evaluate.compare import Comparison
from jobs.evaluate.figures import Figures
from jobs.evaluate.intervals import DASH, Estimate
from jobs.evaluate.judged import Judged
from jobs.evaluate.mistakes import Mistake
from jobs.evaluate.slices import Slice
from jobs.evaluate.thresholds import Curve, Thresholds

FEW = 20  # images of a label, below which its figures say little
SHOWN_LABELS = 50
SHOWN_SLICES = 10


@dataclass(frozen=True)
class Confused:
    """How often images of one label were answered with another."""

    truth: str
    answer: str
    num_images: int
    share: float  # of the images of that label


@dataclass(frozen=True)
class Change:
    """An image about which two models say different things; `change` is gained, lost or both
    wrong.
    """

    path: str
    truth: str
    answer: str
    confidence: float
    other_answer: str
    other_confidence: float
    change: str


@dataclass(frozen=True)
class Report:
    """One evaluation."""

    model: str  # name and version
    bundle: str  # its URI
    kind: str
    created: str
    source: str
    split: str  # of which the images are, "all" for the whole source
    engine: str
    judged: Judged
    figures: Figures
    calibration: Calibration
    temperature: float
    error_without: float | None  # ECE of the same model at temperature 1; None where it is 1
    thresholds: Thresholds
    slices: tuple[Slice, ...]
    confused: tuple[Confused, ...]
    mistakes: tuple[Mistake, ...] = ()
    comparison: Comparison | None = None
    changes: tuple[Change, ...] = ()
    broken: tuple[Broken, ...] = ()
    notes: tuple[str, ...] = ()
    label_revision: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        """How many images were judged."""
        return self.figures.num_images

    def to_json(self) -> dict[str, Any]:
        """Return all but what is said of single images, which stand in the table."""
        figures = asdict(self.figures)
        figures["confusion"] = self.figures.confusion.tolist()
        thresholds = asdict(self.thresholds)
        thresholds["labels"] = [
            {"name": one.name, **asdict(one.suggestion)} for one in self.thresholds.labels
        ]
        thresholds["curve"] = curve_points(self.thresholds.curve)
        found = {
            "model": self.model,
            "bundle": self.bundle,
            "kind": self.kind,
            "label_revision": self.label_revision,
            "created": self.created,
            "source": self.source,
            "split": self.split,
            "engine": self.engine,
            "label_names": list(self.judged.labels),
            "num_unknown": self.judged.num_unknown,
            "num_hidden": self.judged.num_hidden,
            "figures": figures,
            "calibration": {
                "temperature": self.temperature,
                "ece": self.calibration.error,
                "ece_at_temperature_1": self.error_without,
                "ece_by_chance": self.calibration.chance,
                "ece_by_chance_bound": self.calibration.chance_bound,
                "bins": [asdict(one) for one in self.calibration.bins],
            },
            "thresholds": thresholds,
            "slices": [asdict(one) for one in self.slices],
            "confused": [asdict(one) for one in self.confused],
            "comparison": None if self.comparison is None else asdict(self.comparison),
            "broken": [asdict(one) for one in self.broken],
            "notes": list(self.notes),
            "settings": self.settings,
            "seconds": {stage: round(value, 1) for stage, value in self.seconds.items()},
        }
        cleaned: dict[str, Any] = _without_nan(found)
        return cleaned


def curve_points(curve: Curve) -> list[dict[str, float | None]]:
    """Return a curve as points: threshold, coverage, accuracy."""
    steps = range(len(curve.num_answered))
    return [
        {
            "threshold": step / (len(steps) - 1),
            "coverage": curve.coverage(step),
            "accuracy": curve.accuracy(step),
        }
        for step in steps
    ]


def unlike_the_map(report: Report) -> str:
    """Return what a reader of the thresholds must know of those of the label map, "" where none of
    them leaves an image unanswered.
    """
    below = report.judged.num_below_threshold
    if not below:
        return ""
    return (
        f"The label map's own thresholds leave {below:,} images unanswered. They are not applied "
        "here: this is what others in their place would give."
    )


def overall(report: Report) -> Iterator[tuple[str, Estimate]]:
    """Yield the figures over all images with their names."""
    figures = report.figures
    yield "top-1 accuracy", figures.accuracy
    yield "balanced accuracy", figures.balanced_accuracy
    yield "macro F1", figures.macro_f1
    yield "weighted F1", figures.weighted_f1
    yield "calibration error (ECE)", Estimate(report.calibration.error)


def show(report: Report, console: Console) -> None:
    """Print figures, suggestions and slices."""
    console.print(_label_table(report))
    console.print(_overall_table(report))
    if report.comparison is not None:
        console.print(_comparison_table(report.comparison))
        console.print(escape(report.comparison.verdict), highlight=False)
    if report.slices:
        console.print(_slice_table(report))
    for note in report.notes:
        console.print(f"[yellow]note:[/] {escape(note)}", highlight=False)


def _label_table(report: Report) -> Table:
    title = escape(f"{report.model} on {report.source} ({report.split})")
    table = Table(title=title, title_justify="left")
    for column in ("label", "precision", "recall", "F1 (95 %)", "AP", "images"):
        table.add_column(column, justify="left" if column == "label" else "right")
    for one in report.figures.labels[:SHOWN_LABELS]:
        mark = " (few)" if one.num_images < FEW else ""
        table.add_row(
            escape(one.name),
            _short(one.precision),
            _short(one.recall),
            one.f1.text(2),
            _short(one.average_precision),
            f"{one.num_images:,}{mark}",
        )
    more = len(report.figures.labels) - SHOWN_LABELS
    if more > 0:
        table.add_row(f"... {more:,} more", "", "", "", "", "")
    return table


def _overall_table(report: Report) -> Table:
    table = Table(title=f"all {report.num_images:,} images", title_justify="left")
    table.add_column("figure")
    table.add_column("value (95 %)", justify="right")
    for name, figure in overall(report):
        table.add_row(name, figure.text())
    return table


def _short(figure: Estimate) -> str:
    return DASH if figure.value is None else f"{figure.value:.2f}"


def _comparison_table(comparison: Comparison) -> Table:
    table = Table(title="the same images", title_justify="left")
    table.add_column("")
    table.add_column(f"{escape(comparison.other)} right", justify="right")
    table.add_column("wrong", justify="right")
    table.add_row(
        f"{escape(comparison.name)} right", f"{comparison.both_right:,}", f"{comparison.gained:,}"
    )
    table.add_row("wrong", f"{comparison.lost:,}", f"{comparison.both_wrong:,}")
    return table


def _slice_table(report: Report) -> Table:
    table = Table(title="slices, the worst first", title_justify="left")
    for column in ("", "slice", "accuracy", "images"):
        table.add_column(column, justify="left" if column in ("", "slice") else "right")
    for one in report.slices[:SHOWN_SLICES]:
        name = escape(one.name)
        table.add_row(
            one.trait,
            f"[yellow]{name}[/]" if one.is_worse else name,
            one.accuracy.text(),
            f"{one.num_images:,}",
        )
    return table


def _without_nan(value: Any) -> Any:
    """Return JSON values with null for what is not a number, which JSON cannot say."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
