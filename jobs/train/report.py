"""What a person wants to see of a run: tables, curves, a confusion matrix.

Nothing of torch or Ray is loaded by it, so that jobs without them can show their tables too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from jobs.data.split import SPLITS
from jobs.markdown import plain
from jobs.train.history import EpochRecord, best_epoch

if TYPE_CHECKING:
    from jobs.data.index import Index
    from jobs.train.metrics import Evaluation

CONFUSION = "confusion.png"
CURVES = "curves.png"
ENOUGH_SUPPORT = 20
MOST_COUNTS = 30  # classes whose counts are written into the picture: each cell takes a millisecond
MOST_NAMES = 60  # along an edge


def evaluation_table(evaluation: Evaluation, title: str) -> Table:
    """Return precision, recall and F1 per class, and the overall figures below."""
    table = Table(title=title, title_justify="left")
    for column in ("class", "precision", "recall", "F1", "images"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for figures in evaluation.classes:
        mark = " (few)" if figures.num_images < ENOUGH_SUPPORT else ""
        table.add_row(
            escape(figures.name),
            f"{figures.precision:.3f}",
            f"{figures.recall:.3f}",
            f"{figures.f1:.3f}",
            f"{figures.num_images:,}{mark}",
        )
    table.add_section()
    table.add_row(
        "top-1 accuracy", "", f"{evaluation.accuracy:.3f}", "", f"{evaluation.num_images:,}"
    )
    table.add_row("balanced accuracy", "", f"{evaluation.balanced_accuracy:.3f}", "", "")
    return table


def confusion_table(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> Table:
    """Return the confusion matrix, truth down and answer across."""
    table = Table(title="confusion matrix (rows: truth, columns: answer)", title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(escape(name), justify="right")
    for i, (name, row) in enumerate(zip(names, confusion, strict=True)):
        table.add_row(
            escape(name), *(f"[bold]{n:,}[/]" if i == j else f"{n:,}" for j, n in enumerate(row))
        )
    return table


def draw_confusion(evaluation: Evaluation, split: str, path: Path) -> None:
    """Draw the confusion matrix, coloured by the share of each true class."""
    figure, axes = _figure(len(evaluation.classes))
    names = [figures.name for figures in evaluation.classes]
    shares = [[n / max(1, sum(row)) for n in row] for row in evaluation.confusion]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(evaluation.confusion if len(names) <= MOST_COUNTS else ()):
        for j, count in enumerate(row):
            colour = "white" if shares[i][j] > 0.5 else "black"
            axes.text(j, i, str(count), ha="center", va="center", color=colour)
    places = range(0, len(names), -(-len(names) // MOST_NAMES))
    shown = [names[place] for place in places]
    # A name with two dollar signs is a name, and no formula.
    axes.set_xticks(places, shown, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(places, shown, parse_math=False)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    axes.set_title(f"{evaluation.num_images} {split} images, top-1 {evaluation.accuracy:.3f}")
    figure.savefig(path, dpi=120, bbox_inches="tight")


def draw_curves(history: Sequence[EpochRecord], monitor: str, path: Path) -> None:
    """Draw the training loss and the monitored figure over the epochs, with the epoch that was
    kept.
    """
    figure, axes = _figure(4)
    epochs = [record.epoch + 1 for record in history]
    axes.plot(
        epochs, [record.train_loss for record in history], label="train loss", color="tab:gray"
    )
    axes.set_xlabel("epoch")
    axes.set_ylabel("train loss")
    if history and history[-1].validation is not None:
        right = axes.twinx()
        values = [(record.validation or {}).get(monitor, float("nan")) for record in history]
        right.plot(epochs, values, label=monitor, color="tab:blue")
        right.set_ylabel(f"validation {monitor.replace('_', ' ')}")
    axes.axvline(best_epoch(history, monitor) + 1, color="tab:green", linestyle=":", label="kept")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120, bbox_inches="tight")


def training_section(index: Index) -> str:
    """Return what the card of a model says of its training: images, and pictures in the bundle."""
    counts = "\n".join(
        f"| {plain(name)} | {' | '.join(str(row[split]) for split in SPLITS)} |"
        for name, row in index.counts.items()
    )
    return f"""## Images

| class | train | validation | test |
|---|---|---|---|
{counts}

{len(index.quarantine)} images could not be read and were left out.

![confusion matrix]({CONFUSION})

![learning curves]({CURVES})"""


def _figure(size: int) -> tuple[Any, Any]:
    # The object interface: pyplot keeps global state and wants a display.
    from matplotlib.figure import Figure

    edge = min(12.0, 3.0 + 0.6 * size)
    figure = Figure(figsize=(edge, edge))
    return figure, figure.add_subplot()
