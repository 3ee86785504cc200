"""The plot of a run: throughput of everybody, and memory by the number of images."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import OUT
from benchmarks.ingest.plan import SIGHTLINE
from benchmarks.ingest.results import Row
from benchmarks.ingest.waves import CEILING, MEMORY
from benchmarks.serving.steps import Steps

COLOURS = {CEILING: "#c9c9c9", SIGHTLINE: "#2f6db5", "its own way": "#e0c9a6"}
OTHER = "#8fb3d9"


def save_picture(rows: Sequence[Row], steps: Steps) -> Path:
    """Save the plot to `benchmarks/out` and return where it is."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4 + 0.34 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    speed, memory = figure.subplots(2, 1, height_ratios=(0.34 * len(rows), 2.2))
    names = [row.name for row in rows]
    colours = [
        next((colour for word, colour in COLOURS.items() if word in name), OTHER) for name in names
    ]
    speed.barh(names, [statistics.median(row.per_second) for row in rows], color=colours)
    for row in rows:
        speed.plot(list(row.per_second), [row.name] * len(row.per_second), "k.", markersize=4)
    speed.axvline(statistics.median(rows[0].per_second), color="grey", linewidth=0.8)
    speed.invert_yaxis()
    speed.set_xlabel("images per second: medians, and a dot for each repetition")
    found = sorted((int(key[0]), float(each["mib"])) for key, each in steps.below(MEMORY))
    memory.plot([size for size, _ in found], [mib for _, mib in found], "o-", color="#2f6db5")
    memory.set_xscale("log")
    memory.set_ylim(bottom=0)
    memory.set_xlabel("images in the set")
    memory.set_ylabel("all processes, MiB")
    OUT.mkdir(exist_ok=True)
    path = OUT / "ingest.png"
    figure.savefig(path, dpi=120)
    return path
