"""What a person wants to see of a run: tables, curves, a confusion matrix.

Nothing of torch or Ray is loaded by it, so that jobs without them can show their tables too.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
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
    fonts = fonts_for(names)
    shown = [names[place] if fonts else str(place + 1) for place in places]
    # A name with two dollar signs is a name, and no formula.
    style = {"parse_math": False, "fontfamily": fonts}
    axes.set_xticks(places, shown, rotation=45, ha="right", **style)
    axes.set_yticks(places, shown, **style)
    axes.set_xlabel("answer" if fonts else "answer (numbers as in the model card)")
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
    fonts = fonts_for(list(index.counts))
    counts = "\n".join(
        f"| {'' if fonts else f'{number}: '}{plain(name)} | "
        f"{' | '.join(str(row[split]) for split in SPLITS)} |"
        for number, (name, row) in enumerate(index.counts.items(), start=1)
    )
    numbered = (
        ""
        if fonts
        else "Where it was drawn no font has all letters of the names: classes stand by their "
        "numbers in the confusion matrix.\n\n"
    )
    return f"""## Images

| class | train | validation | test |
|---|---|---|---|
{counts}

{len(index.quarantine)} images could not be read and were left out.

{numbered}![confusion matrix]({CONFUSION})

![learning curves]({CURVES})"""


def fonts_for(texts: Sequence[str]) -> list[str] | None:
    """Return the families that texts are drawn with: the usual one, and where it lacks letters, as
    those of Chinese, Japanese and Korean, others of this machine that have them. None where some
    letter is in none of them: it would be drawn as an empty box.
    """
    from matplotlib import font_manager, rcParams

    families = list(rcParams["font.family"])
    odd = {ord(letter) for text in texts if not _is_plain(text) for letter in text}
    if odd:
        usual = font_manager.findfont(font_manager.FontProperties(family=families))
        odd -= font_manager.get_font(usual).get_charmap().keys()
    if not odd:
        return families
    having: dict[str, set[int]] = {}
    for entry in font_manager.fontManager.ttflist:
        if "lastresort" in entry.name.lower().replace(" ", ""):  # has boxes for all letters
            continue
        with suppress(OSError, RuntimeError):  # not every file that is found can be read
            letters = font_manager.get_font(entry.fname).get_charmap().keys()
            having.setdefault(entry.name, set()).update(odd & letters)
    while odd and having:
        most = max(sorted(having), key=lambda name: len(having[name] & odd))
        if not having[most] & odd:
            break
        families.append(most)
        odd -= having.pop(most)
    return None if odd else families


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _figure(size: int) -> tuple[Any, Any]:
    # The object interface: pyplot keeps global state and wants a display.
    from matplotlib.figure import Figure

    edge = min(12.0, 3.0 + 0.6 * size)
    figure = Figure(figsize=(edge, edge))
    return figure, figure.add_subplot()
