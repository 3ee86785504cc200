"""Memory and descriptors over time, by role."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import OUT
from benchmarks.soak.watch import Sample


def save_picture(samples: Sequence[Sample]) -> Path:
    """Save the plot to `benchmarks/out` and return its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained")
    FigureCanvasAgg(figure)
    memory, descriptors = figure.subplots(2, sharex=True)
    for role in sorted({each.role for each in samples}):
        of_role = [each for each in samples if each.role == role]
        minutes = [each.seconds / 60 for each in of_role]
        memory.plot(minutes, [each.memory_mib for each in of_role], label=role)
        descriptors.plot(minutes, [each.descriptors for each in of_role])
    memory.set_ylabel("memory, MiB (unique)")
    memory.set_ylim(bottom=0)
    memory.legend(fontsize="small", ncols=3)
    descriptors.set_ylabel("open descriptors")
    descriptors.set_ylim(bottom=0)
    descriptors.set_xlabel("minutes")
    OUT.mkdir(exist_ok=True)
    path = OUT / "soak.png"
    figure.savefig(path, dpi=120)
    return path
