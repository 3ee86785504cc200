"""`python -m benchmarks.batch_scoring [--quick]`: `jobs.score --bundle` against a plain loop that
decodes and infers the same images with the same engine on all cores.

The ceiling is the best of every sensible layout (`benchmarks.ceiling`); its images are in memory
already. Ours is the whole job from the first image to the last: listing, reading, decoding,
running, and writing parts; Ray and the workers are up, as in any run longer than this one. Both
take turns.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks.ceiling import Crew, layouts, proven_precision
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
from jobs.score.bundled import Running
from jobs.score.run import Options, run_scoring
from models.bundle import open_bundle

NUM_FINALISTS = 2


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default=".sightline/models/elpv/1")
    parser.add_argument("--images", type=Path, help="flat folder (200 solar cells)")
    parser.add_argument("--workers", type=int, action="append", help="layouts of ours to compare")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    rounds, seconds, num_images = (3, 5.0, 1200) if given.quick else (7, 12.0, 4000)
    report = Report("batch_scoring", machine=machine_facts(), versions=library_versions())
    with tempfile.TemporaryDirectory() as made, ending_by_exception():
        photos = given.images or Path(made) / "photos"
        if given.images is None and not collect_cells(photos):
            raise SystemExit("the photos are in the package elpv-dataset; or give --images")
        source = _many(photos, Path(made) / "many", num_images)
        series = _measure(given.bundle, photos, source, given.workers or [None], rounds, seconds)
    ceilings = [max(values) for values in zip(*_of(series, "ceiling"), strict=True)]
    rows = []
    for name, values in series.items():
        pairs = zip(values, ceilings, strict=True)
        ratio = statistics.median(mine / best for mine, best in pairs)
        rows.append((name, f"{statistics.median(values):.0f}", f"{ratio:.3f}"))
        if not name.startswith("ceiling"):
            report.ratios[f"{name.replace(' ', '_')}_to_ceiling"] = ratio
            report.figures[f"{name.replace(' ', '_')}_images_per_s"] = statistics.median(values)
    report.figures["ceiling_images_per_s"] = statistics.median(ceilings)
    print_table("batch scoring", ("", "images/s", "of the ceiling"), rows)
    save_bars("batch_scoring", "images/s", series)
    print(report.line())
    return 0


def _of(series: dict[str, list[float]], word: str) -> list[list[float]]:
    return [values for name, values in series.items() if name.startswith(word)]


def _many(photos: Path, target: Path, count: int) -> Path:
    """Make a folder of links to the photos, each many times."""
    files = sorted(photos.iterdir())
    for number in range(count):
        link = target / f"{number // 1000:03}" / f"{number:06}{files[number % len(files)].suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(files[number % len(files)], link)
    return target


def _measure(
    bundle: str,
    photos: Path,
    source: Path,
    workers: list[int | None],
    rounds: int,
    seconds: float,
) -> dict[str, list[float]]:
    precision = proven_precision(open_bundle(bundle))
    cores = len(os.sched_getaffinity(0))
    environment = dict(os.environ)
    screened = []
    for layout in layouts(cores):
        crew = Crew(layout, bundle, photos, precision, environment)
        screened.append((crew.run(seconds / 2), crew))
    screened.sort(key=lambda pair: -pair[0])
    for _, crew in screened[NUM_FINALISTS:]:
        crew.close()
    finalists = [crew for _, crew in screened[:NUM_FINALISTS]]
    series: dict[str, list[float]] = {}
    with open_session(SessionOptions()):
        import ray

        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        for _ in range(rounds):
            for crew in finalists:
                name = f"ceiling {crew.layout.name}"
                series.setdefault(name, []).append(crew.run(seconds))
            for count in workers:
                name = "jobs.score" if count is None else f"jobs.score {count} workers"
                series.setdefault(name, []).append(_score(bundle, source, count, cores))
        del os.environ["RAY_ADDRESS"]
    for crew in finalists:
        crew.close()
    return series


def _score(bundle: str, source: Path, workers: int | None, cores: int) -> float:
    threads = None if workers is None else cores // workers
    with tempfile.TemporaryDirectory() as made:
        how = Running(bundle, workers=workers, threads=threads or cores)
        options = Options(str(source), f"{made}/scores.parquet", how)
        outcome = run_scoring(options, Console(file=io.StringIO()))
    assert not outcome.tally.num_failed
    return outcome.tally.num_images / outcome.seconds


if __name__ == "__main__":
    sys.exit(main())
