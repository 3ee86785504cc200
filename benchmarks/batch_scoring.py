"""`python -m benchmarks.batch_scoring [--quick]`: `jobs.score --bundle` against a plain loop that
decodes and infers the same images with the same engine on all cores.

The ceiling is the best of every sensible layout (`benchmarks.ceiling`); its images are in memory
already. Ours is the job while it runs: listing, reading, decoding, running, collecting and writing
parts, from the first image to the last. Ray and the models are up, of each number of `--workers`.
All take turns in short windows, and the CPU time of an image is told beside, which neighbours
disturb less than the rate.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.ceiling import layouts, open_crew, proven_precision
from benchmarks.common import (
    Report,
    ending_by_exception,
    library_versions,
    machine_facts,
    print_table,
    save_bars,
)
from benchmarks.photos import collect_cells
from cluster.session import SessionOptions, open_session
from jobs.data.locate import choose_threads
from jobs.lease import acquire
from jobs.score.columns import Columns
from jobs.score.crew import Crew, Node, Size, choose_size
from jobs.score.items import open_source
from jobs.score.parts import Parts
from jobs.score.tally import Tally
from jobs.score.worker import Job
from models.bundle import open_bundle
from models.engines.base import EngineOptions
from models.label_map import first_reading
from models.storage import open_store

NUM_FINALISTS = 2


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default=".sightline/models/elpv/1")
    parser.add_argument("--images", type=Path, help="flat folder (200 solar cells)")
    parser.add_argument("--workers", type=int, action="append", help="of ours (as a run chooses)")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    rounds, seconds, num_images = (5, 3.0, 400) if given.quick else (15, 5.0, 800)
    report = Report("batch_scoring", machine=machine_facts(), versions=library_versions())
    with tempfile.TemporaryDirectory() as made, ending_by_exception():
        photos = given.images or Path(made) / "photos"
        if given.images is None and not collect_cells(photos):
            raise SystemExit("the photos are in the package elpv-dataset; or give --images")
        source = link_many(photos, Path(made) / "many", num_images)
        plan = Plan(given.bundle, photos, source, given.workers or [None], rounds, seconds)
        series = plan.run()
    _tell(series, report)
    return 0


def _tell(series: dict[str, list[Window]], report: Report) -> None:
    """Print what came out, and fill in the report."""
    ceilings = [values for name, values in series.items() if name.startswith("ceiling")]
    best = [max(window.rate for window in windows) for windows in zip(*ceilings, strict=True)]
    rows = []
    for name, windows in series.items():
        rate = statistics.median(window.rate for window in windows)
        pairs = zip(windows, best, strict=True)
        ratio = statistics.median(window.rate / ceiling for window, ceiling in pairs)
        cpu = statistics.median(window.cpu_ms for window in windows)
        rows.append((name, f"{rate:.0f}", f"{ratio:.3f}", f"{cpu:.2f}"))
        if not name.startswith("ceiling"):
            key = name.replace(" ", "_").replace(".", "_")
            report.ratios[f"{key}_to_ceiling"] = ratio
            report.figures[f"{key}_images_per_s"] = rate
            report.figures[f"{key}_cpu_ms_per_image"] = cpu
    report.figures["ceiling_images_per_s"] = statistics.median(best)
    report.figures["ceiling_cpu_ms_per_image"] = min(
        statistics.median(window.cpu_ms for window in windows) for windows in ceilings
    )
    columns = ("", "images/s", "of the ceiling", "CPU ms an image")
    print_table("batch scoring", columns, rows)
    save_bars(
        "batch_scoring",
        "images/s",
        {name: [window.rate for window in windows] for name, windows in series.items()},
    )
    print(report.line())


@dataclass(frozen=True)
class Window:
    """What was measured in one turn."""

    rate: float  # images per second
    cpu_ms: float  # of all processes, an image


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    bundle: str
    photos: Path
    source: Path
    workers: list[int | None]
    rounds: int
    seconds: float

    def run(self) -> dict[str, list[Window]]:
        """Measure all in turns; returns the windows of each."""
        precision = proven_precision(open_bundle(self.bundle))
        cores = len(os.sched_getaffinity(0))
        screened = []
        for layout in layouts(cores):
            crew = open_crew(layout, self.bundle, self.photos, precision, dict(os.environ))
            screened.append((crew.run(self.seconds), crew))
        screened.sort(key=lambda pair: -pair[0])
        for _, crew in screened[NUM_FINALISTS:]:
            crew.close()
        finalists = [crew for _, crew in screened[:NUM_FINALISTS]]
        series: dict[str, list[Window]] = {}
        sizes = self.sizes(cores)
        # A Ray of its own, which is told of room for all: else the second crew waits for ever for
        # the CPUs of the first, which is idle then.
        options = SessionOptions(num_cpus=num_logical_cpus(sizes.values()), connect=False)
        with open_session(options), ExitStack() as stack:
            ours = {
                name: stack.enter_context(Crew(self._job(size), size))
                for name, size in sizes.items()
            }
            for _ in range(self.rounds):
                for ceiling in finalists:
                    rate = ceiling.run(self.seconds)
                    name = f"ceiling {ceiling.name}"
                    series.setdefault(name, []).append(Window(rate, ceiling.cpu_ms_per_image))
                for name, crew_of_ours in ours.items():
                    series.setdefault(name, []).append(self._score(crew_of_ours))
        for crew in finalists:
            crew.close()
        return series

    def _columns(self) -> Columns:
        return Columns(False, True, "top", 2, 0)

    def sizes(self, cores: int) -> dict[str, Size]:
        """Return our crews by their names: as a run chooses, or so many workers that share the
        cores.
        """
        found = {}
        for workers in self.workers:
            threads = None if workers is None else max(1, cores // workers)
            size = choose_size([Node(cores)], workers=workers, threads=threads)
            found["jobs.score" if workers is None else f"jobs.score {workers} workers"] = size
        return found

    def _job(self, size: Size) -> Job:
        return Job(
            bundle=self.bundle,
            engine=EngineOptions(threads=size.num_threads),
            columns=self._columns(),
            reading=first_reading(open_bundle(self.bundle).manifest.classes),
            label_revision=0,
            num_readers=choose_threads(str(self.source)),
        )

    def _score(self, crew: Crew) -> Window:
        """Score all images, with what a run does around it."""
        crew.open()
        source = open_source(str(self.source), path_column="path", label_column=None)
        with tempfile.TemporaryDirectory() as made:
            (Path(made) / "parts").mkdir()
            lease = acquire(open_store(made), "--output")
            parts, tally = Parts(open_store(made), self._columns(), lease), Tally()
            before, started = _cpu_seconds(), time.perf_counter()
            for rows in crew.rows(source.items()):
                tally.add(parts.add(rows))
            tally.add(parts.flush())
            elapsed, used = time.perf_counter() - started, _cpu_seconds() - before
            lease.release(forget=True)
        assert tally.num_images
        assert not tally.num_failed
        return Window(tally.num_images / elapsed, used * 1e3 / tally.num_images)


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of Ray's, which it has started."""
    me = psutil.Process()
    total = 0.0
    for process in [me, *me.children(recursive=True)]:
        with suppress(psutil.Error):
            if "benchmarks.ceiling" not in process.cmdline():
                total += sum(process.cpu_times()[:2])
    return total


def num_logical_cpus(sizes: Iterable[Size]) -> int:
    """Return how many CPUs of Ray crews take that are up at a time."""
    return sum(size.num_workers * size.num_threads for size in sizes)


def link_many(photos: Path, target: Path, count: int) -> Path:
    """Make a folder of links to the photos, or of copies where there can be none, each as often as
    needed.
    """
    files = sorted(photos.iterdir())
    for number in range(count):
        link = target / f"{number // 1000:03}" / f"{number:06}{files[number % len(files)].suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(files[number % len(files)], link)
        except OSError:  # another file system, or one without links
            shutil.copyfile(files[number % len(files)], link)
    return target


if __name__ == "__main__":
    sys.exit(main())
