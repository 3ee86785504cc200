"""Memory and descriptors by role over time, as a plot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import OUT
from benchmarks.soak.watch import Sample


def save_picture(samples: Sequence[Sample]) -> Path:
    """Save the plot to `benchmarks/out` and return its path. Memory is drawn by process, so that
    one that grows is seen beside its like.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 9), layout="constrained")
    FigureCanvasAgg(figure)
    memory, descriptors = figure.subplots(2, sharex=True)
    for number, role in enumerate(sorted({each.role for each in samples if each.pid})):
        colour, style = f"C{number % 10}", "-" if number < 10 else "--"
        of_pids: defaultdict[int, list[Sample]] = defaultdict(list)
        files: defaultdict[float, int] = defaultdict(int)
        for each in samples:
            if each.role == role:
                of_pids[each.pid].append(each)
                files[each.seconds] += each.descriptors
        for position, of_pid in enumerate(of_pids.values()):
            minutes = [each.seconds / 60 for each in of_pid]
            name = None if position else role
            values = [each.memory_mib for each in of_pid]
            memory.plot(minutes, values, style, color=colour, label=name, linewidth=1)
        times = sorted(files)
        counts = [files[seconds] for seconds in times]
        descriptors.plot([each / 60 for each in times], counts, style, color=colour, linewidth=1)
    memory.set_ylabel("memory that a process has written, MiB")
    memory.set_ylim(bottom=0)
    figure.legend(fontsize="small", ncols=4, loc="outside lower center")
    descriptors.set_ylabel("open descriptors of a role")
    descriptors.set_ylim(bottom=0)
    descriptors.set_xlabel("minutes")
    OUT.mkdir(exist_ok=True)
    path = OUT / "soak.png"
    figure.savefig(path, dpi=120)
    return path
