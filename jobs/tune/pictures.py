"""The pictures of a search: the range test, the learning curves of all trials, and which settings
were good (parallel coordinates). Each is written as a PNG.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.train.report import fonts_for
from jobs.tune.records import Record
from jobs.tune.suggestion import RangeTest

PARALLEL, CURVES, LR_TEST = "parallel_coordinates.png", "learning_curves.png", "lr_test.png"
MARGIN = 0.04  # of an axis, between its end and the first value


def draw_range_test(test: RangeTest, path: Path) -> None:
    """Draw the loss over the rate, as it was and smoothed, with the rates that stand out."""
    figure, axes = _figure(7, 4.5)
    found = test.suggestion
    axes.plot(test.rates, test.losses, color="tab:gray", alpha=0.35, linewidth=1, label="loss")
    axes.plot(test.rates[: len(found.smoothed)], found.smoothed, color="tab:blue", label="smoothed")
    marks = (
        (found.diverged, "tab:red", "diverged"),
        (found.steepest, "tab:orange", "steepest descent"),
        (found.rate, "tab:green", f"suggested, {found.by}"),
    )
    for rate, colour, label in marks:
        if rate is not None:
            axes.axvline(rate, color=colour, linestyle=":", label=f"{label}: {rate:.2g}")
    axes.set_xscale("log")
    if found.smoothed:  # what comes after the divergence would flatten the rest
        low, high = min(found.smoothed), max(found.smoothed)
        axes.set_ylim(low - 0.1 * (high - low) - 1e-9, high + 0.5 * (high - low) + 1e-9)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("train loss")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def draw_curves(records: Sequence[Record], monitor: str, best: int | None, path: Path) -> None:
    """Draw the monitored validation figure of every trial over its epochs; those that were stopped
    early end early.
    """
    figure, axes = _figure(8, 5)
    for record in records:
        values = [float(epoch[monitor]) for epoch in record.epochs]
        is_best = record.number == best
        colour = (
            "tab:green" if is_best else "tab:gray" if record.status == "stopped" else "tab:blue"
        )
        axes.plot(
            range(1, len(values) + 1),
            values,
            color=colour,
            marker="." if len(values) < 3 else None,
            alpha=1.0 if is_best else 0.5,
            linewidth=2.5 if is_best else 1.0,
            zorder=3 if is_best else 2,
            label=f"trial {record.number}, the best" if is_best else None,
        )
    firsts = [float(record.epochs[0][monitor]) for record in records if record.epochs]
    if monitor == "loss" and firsts:  # one that breaks would flatten the others
        axes.set_ylim(0, 1.1 * max(firsts) + 1e-9)
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"validation {monitor.replace('_', ' ')}")
    axes.set_title(f"{len(records)} trials; grey: stopped early")
    if best is not None:
        axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def draw_parallel(records: Sequence[Record], monitor: str, best: int | None, path: Path) -> None:
    """Draw each trial as a line across its settings, coloured by its figure: where the good lines
    run together, a setting matters.
    """
    from matplotlib import colormaps

    shown = [record for record in records if record.score is not None]
    names = [name for name in shown[0].settings if len(_distinct(shown, name)) > 1] if shown else []
    figure, axes = _figure(max(6, 2.2 * (len(names) + 1)), 5)
    columns = [*(_Axis([record.settings[name] for record in shown]) for name in names)]
    columns.append(_Axis([record.figure(monitor) for record in shown]))
    scores = [record.score or 0.0 for record in shown] or [0.0]
    low, spread = min(scores), max(scores) - min(scores) or 1.0
    ordered = sorted(shown, key=lambda record: record.score or 0.0)
    for record in ordered:  # the best on top
        position = shown.index(record)
        axes.plot(
            range(len(columns)),
            [column.places[position] for column in columns],
            color=colormaps["viridis"](((record.score or 0.0) - low) / spread),
            linewidth=3 if record.number == best else 1.2,
            alpha=1.0 if record.number == best else 0.7,
        )
    fonts = fonts_for([text for column in columns for _, text in column.ticks])
    paper = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1}
    # A value with two dollar signs is a value, and no formula.
    style = {"fontsize": 8, "fontfamily": fonts, "parse_math": False, "bbox": paper}
    for x, column in enumerate(columns):
        axes.axvline(x, color="black", linewidth=0.8)
        for place, text in column.ticks:
            drawn = text if fonts else text.encode("ascii", "backslashreplace").decode()
            axes.text(x + 0.03, place, drawn, va="center", zorder=4, **style)
    axes.set_xticks(
        range(len(columns)),
        [
            *(name.replace(", ", ",\n") for name in names),
            f"validation\n{monitor.replace('_', ' ')}",
        ],
    )
    axes.set_yticks([])
    axes.set_ylim(0, 1)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=120, bbox_inches="tight")


class _Axis:
    """Where the values of one column lie, 0 to 1, and what is written beside it."""

    def __init__(self, values: Sequence[Any]) -> None:
        numbers = [float(v) for v in values if isinstance(v, int | float) and type(v) is not bool]
        if len(numbers) < len(values) or not numbers:
            texts = sorted({_text(value) for value in values})
            places = {text: self._inner(i, 0, len(texts) - 1) for i, text in enumerate(texts)}
            self.places = [places[_text(value)] for value in values]
            self.ticks = [(place, text.strip('"')) for text, place in places.items()]
            return
        low, high = min(numbers), max(numbers)
        is_log = low > 0 and high / low >= 20
        scale = math.log if is_log else float
        self.places = [self._inner(scale(n), scale(low), scale(high)) for n in numbers]
        unique = sorted(set(numbers))
        marked = unique if len(unique) <= 5 else [low, high]
        self.ticks = [(self._inner(scale(n), scale(low), scale(high)), f"{n:.4g}") for n in marked]

    @staticmethod
    def _inner(value: float, low: float, high: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return MARGIN + (1 - 2 * MARGIN) * share


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _distinct(records: Sequence[Record], name: str) -> set[str]:
    return {json.dumps(record.settings.get(name)) for record in records}


def _figure(width: float, height: float) -> tuple[Any, Any]:
    # The object interface: pyplot keeps global state and wants a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(min(width, 24), height))
    return figure, figure.add_subplot()
