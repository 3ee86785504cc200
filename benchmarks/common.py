"""What every benchmark shares: facts of the machine, the table, the plot, the final JSON line.

The JSON line has the same keys for all, so that runs can be compared over years:
`benchmark`, `ratios`, `figures`, `failures`, `machine`, `versions`.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

OUT = Path(__file__).parent / "out"
COLUMNS_WITHOUT_TERMINAL = 160
# What decides how fast a network runs on a CPU.
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
LIBRARIES = ("ray", "openvino", "torch", "numpy", "simplejpeg", "opencv-python-headless", "uvicorn")


@dataclass
class Report:
    """What one benchmark found."""

    benchmark: str
    ratios: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float | str] = field(default_factory=dict)
    failures: dict[str, int | str] = field(default_factory=dict)
    machine: dict[str, float | str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def line(self) -> str:
        """Return the one line for machines."""
        return json.dumps(
            {
                "benchmark": self.benchmark,
                "ratios": _rounded(self.ratios),
                "figures": _rounded(self.figures),
                "failures": self.failures,
                "machine": _rounded(self.machine),
                "versions": self.versions,
            }
        )


def machine_facts() -> dict[str, float | str]:
    """Return what a reader needs to know of this machine, and how busy others keep it right now."""
    return {
        "cpu": _cpu_name(),
        "cpu_flags": " ".join(_cpu_flags()),
        "cores": len(psutil.Process().cpu_affinity() or []),
        "memory_gib": psutil.virtual_memory().total / 2**30,
        "system": f"{platform.system()} {platform.release()}",
        "busy_share_before": psutil.cpu_percent(interval=1.0) / 100,
    }


def library_versions(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the versions of the libraries that matter, and Python's."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return {**found, **(extra or {})}


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else COLUMNS_WITHOUT_TERMINAL).print(table)


def save_bars(name: str, unit: str, series: Mapping[str, Sequence[float]]) -> Path:
    """Save a bar chart of medians with a dot per repetition to `benchmarks/out` and return its
    path.
    """
    figure = make_figure(9, 1 + 0.45 * len(series))
    draw_bars(figure.add_subplot(), series, ["#8fb3d9"] * len(series))
    figure.axes[0].set_xlabel(unit)
    OUT.mkdir(exist_ok=True)
    path = OUT / f"{name}.png"
    figure.savefig(path, dpi=120)
    return path


def make_figure(width: float, height: float) -> Any:
    """Return an empty figure of so many inches that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_bars(axes: Any, series: Mapping[str, Sequence[float]], colours: Sequence[str]) -> None:
    """Draw a bar for each median, the first one at the top, with a dot for each repetition."""
    axes.barh(
        list(series), [statistics.median(values) for values in series.values()], color=colours
    )
    for name, values in series.items():
        axes.plot(list(values), [name] * len(values), "k.", markersize=4)
    axes.invert_yaxis()


def draw_throughput(
    axes: Any,
    series: Mapping[str, Sequence[float]],
    colours: Mapping[str, str],
    other: str,
) -> None:
    """Draw the images per second of everybody, the ceiling first, with a line where that ends; a
    colour counts for the names that hold its word.
    """
    chosen = [
        next((colour for word, colour in colours.items() if word in name), other) for name in series
    ]
    draw_bars(axes, series, chosen)
    axes.axvline(statistics.median(next(iter(series.values()))), color="grey", linewidth=0.8)
    axes.set_xlabel("images per second: medians, and a dot for each repetition")


@contextmanager
def variable_set(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment, which the processes started meanwhile inherit."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def ending_by_exception() -> Iterator[None]:
    """Turn a request to end (SIGTERM) into an exception meanwhile, so that peers are stopped.

    Python ends without any clean-up otherwise, and servers in sessions of their own live on: one
    that was left behind so took a tenth of a core for an hour.
    """

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _rounded(values: Mapping[str, float | str]) -> dict[str, float | str]:
    return {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in values.items()
    }


def _cpu_name() -> str:
    return _cpu_line("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> list[str]:
    present = _cpu_line("flags").split()
    return [flag for flag in CPU_FLAGS if flag in present]


def _cpu_line(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
