"""The plot of a run: throughput of everybody, and memory by the number of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import OUT, draw_throughput, make_figure
from benchmarks.ingest.plan import SIGHTLINE
from benchmarks.ingest.results import Row, memory_by_size
from benchmarks.ingest.waves import CEILING
from benchmarks.serving.steps import Steps

COLOURS = {CEILING: "#c9c9c9", SIGHTLINE: "#2f6db5", "its own way": "#e0c9a6"}
OTHER = "#8fb3d9"


def save_picture(rows: Sequence[Row], steps: Steps) -> Path:
    """Save the plot to `benchmarks/out` and return where it is."""
    figure = make_figure(10, 4 + 0.34 * len(rows))
    speed, memory = figure.subplots(2, 1, height_ratios=(0.34 * len(rows), 2.2))
    draw_throughput(speed, {row.name: row.per_second for row in rows}, COLOURS, OTHER)
    found = memory_by_size(steps)
    memory.plot([size for size, _ in found], [mib for _, mib in found], "o-", color="#2f6db5")
    memory.set_xscale("log")
    memory.set_ylim(bottom=0)
    memory.set_xlabel("images in the set")
    memory.set_ylabel("all processes, MiB")
    OUT.mkdir(exist_ok=True)
    path = OUT / "ingest.png"
    figure.savefig(path, dpi=120)
    return path
