"""`python -m benchmarks.memory [--quick]`: does a training run need more memory for more images?

Trains `configs/train/elpv.yaml` (one view) on 1, 4 and 16 times the solar cells (`--quick`: 1 and
4), each in a process of its own, and adds up the memory of that process and all that Ray started
for it, twice a second. Every copy is a hard link, so it costs no disk, and is listed, read, decoded
and trained on like any other image.

Memory is the proportional set size: a page shared by n processes counts 1/n for each, so the object
store is counted once. The kernel's file cache is not counted; it is given back on demand.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.common import OUT, Report, library_versions, machine_facts, print_table
from benchmarks.smaps import memory_of
from jobs.demo_data import write_elpv

CONFIG = "configs/train/elpv.yaml"
CELLS = Path(".sightline/data/elpv")
SECONDS_BETWEEN_SAMPLES = 0.5


@dataclass(frozen=True)
class Sample:
    """Memory at one moment, in MiB: all processes, the shared memory in it, the training
    process.
    """

    seconds: float
    total: float
    shared: float
    trainer: float


@dataclass(frozen=True)
class Run:
    """One training run."""

    copies: int
    num_images: int
    status: int
    samples: tuple[Sample, ...]

    def peak(self, field: str) -> float:
        """Return the largest value of a field of the samples."""
        return max(float(getattr(sample, field)) for sample in self.samples)


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1 and 4 times only")
    parser.add_argument("--views", type=int, default=1, help="copies of the features per image")
    arguments = parser.parse_args()
    if not CELLS.is_dir():
        write_elpv(str(CELLS))
    report = Report("memory", machine=machine_facts(), versions=library_versions())
    runs = []
    for copies in (1, 4) if arguments.quick else (1, 4, 16):
        run = _train(copies, arguments.views)
        runs.append(run)
        print(
            f"{copies}x: {run.num_images:,} images, peak {run.peak('total'):,.0f} MiB, "
            f"{run.samples[-1].seconds:.0f} s",
            file=sys.stderr,
        )
        if run.status != 0:
            report.failures[f"{copies}x"] = f"the run ended with status {run.status}"
    print_table(
        "peak memory of a training run, MiB",
        ("images", "all processes", "shared memory", "training process", "seconds"),
        [
            (
                f"{run.num_images:,}",
                *(f"{run.peak(field):,.0f}" for field in ("total", "shared", "trainer")),
                f"{run.samples[-1].seconds:.0f}",
            )
            for run in runs
        ],
    )
    for run in runs:
        for field in ("total", "shared", "trainer"):
            report.figures[f"{field}_peak_{run.copies}x_mib"] = run.peak(field)
        report.figures[f"images_{run.copies}x"] = float(run.num_images)
    first, last = runs[0], runs[-1]
    report.ratios[f"memory_{last.copies}x_to_1x"] = last.peak("total") / first.peak("total")
    print(f"plot: {_draw(runs)}")
    print(report.line())
    return 1 if report.failures else 0


def _train(copies: int, views: int) -> Run:
    with tempfile.TemporaryDirectory(prefix="sightline-memory-", dir=CELLS.parent) as made:
        folder = Path(made)
        count = _link(folder / "data", copies)
        command = [
            *(sys.executable, "-m", "jobs.train", CONFIG),
            f"data.uri={folder / 'data'}",
            f"store={folder / 'models'}",
            f"runs={folder / 'runs'}",
            f"network.num_views={views}",
        ]
        started = time.monotonic()
        samples = []
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
            while process.poll() is None:
                samples.append(_sample(process.pid, time.monotonic() - started))
                time.sleep(SECONDS_BETWEEN_SAMPLES)
        if process.returncode != 0:
            print((folder / "log").read_text()[-2000:], file=sys.stderr)
        return Run(copies, count, process.returncode, tuple(samples))


def _link(folder: Path, copies: int) -> int:
    count = 0
    for path in sorted(CELLS.glob("*/*.png")):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        for copy in range(copies):
            os.link(path, folder / path.parent.name / f"{copy:02}-{path.name}")
            count += 1
    return count


def _sample(pid: int, seconds: float) -> Sample:
    try:
        family = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:  # it has just ended
        family = []
    found = {}
    for member in family:
        with contextlib.suppress(OSError):  # it ended meanwhile
            found[member] = memory_of(member)
    return Sample(
        seconds,
        sum(each.pss_mib for each in found.values()),
        sum(each.shared_mib for each in found.values()),
        found[pid].pss_mib if pid in found else 0.0,
    )


def _draw(runs: list[Run]) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for run in runs:
        end = run.samples[-1].seconds
        axes.plot(
            [sample.seconds / end for sample in run.samples],
            [sample.total for sample in run.samples],
            label=f"{run.num_images:,} images, {end:.0f} s",
        )
    axes.set_xlabel("share of the run")
    axes.set_ylabel("memory of all processes, MiB")
    axes.set_ylim(bottom=0)
    axes.legend()
    OUT.mkdir(exist_ok=True)
    path = OUT / "memory.png"
    figure.savefig(path, dpi=120)
    return path


if __name__ == "__main__":
    sys.exit(main())
