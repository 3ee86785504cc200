"""The plot of a run: throughput of everybody, and latency at fixed rates."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import OUT, draw_throughput, make_figure
from benchmarks.serving.plan import SHARES, Setting
from benchmarks.serving.results import Row
from benchmarks.serving.steps import Steps
from benchmarks.serving.waves import SAME, SIGHTLINE

COLOURS = {"ceiling": "#c9c9c9", "Sightline": "#2f6db5", "same model": "#8fb3d9"}
OTHER = "#e0c9a6"  # their own way


def save_pictures(rows: Sequence[Row], steps: Steps, setting: Setting) -> list[Path]:
    """Save the plots to `benchmarks/out` and return where they are."""
    OUT.mkdir(exist_ok=True)
    paths = [_throughput(rows, OUT / "serving.png")]
    rated = [
        name
        for name in (SIGHTLINE, *setting.peers)
        if steps.series("p99_ms", "rate", SAME, name, SHARES[-1])
    ]
    return [*paths, _latency(rated, steps, OUT / "serving_latency.png")] if rated else paths


def _throughput(rows: Sequence[Row], path: Path) -> Path:
    figure = make_figure(10, 1 + 0.36 * len(rows))
    series = {row.name: row.per_second for row in rows}
    draw_throughput(figure.add_subplot(), series, COLOURS, OTHER)
    figure.savefig(path, dpi=120)
    return path


def _latency(names: Sequence[str], steps: Steps, path: Path) -> Path:
    figure = make_figure(9, 1.5 + 0.4 * len(names))
    axes = figure.add_subplot()
    for share, marker in zip(SHARES, "osD", strict=True):
        values = [
            statistics.median(steps.series("p99_ms", "rate", SAME, name, share)) for name in names
        ]
        axes.plot(values, names, marker, label=f"at {share:.0%} of its capacity")
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.grid(axis="x", which="both", linewidth=0.3)
    axes.set_xlabel("p99 of admitted requests, ms; unanswered ones count with their wait")
    axes.legend(loc="best", fontsize="small")
    figure.savefig(path, dpi=120)
    return path
