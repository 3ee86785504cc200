"""How much of the machine's ceiling reaches the client: `python -m benchmarks.serving [--quick]`.

The ceiling is decode+infer without any server, the best of every sensible layout. Against it stands
Sightline through Ray Serve and HAProxy with raw image bodies, in a closed loop. Both are measured
in turns in one run, and every process of Ray is stopped (SIGSTOP) while the ceiling is measured,
since idle daemons take CPU too and would make the ceiling look lower.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ceiling import Crew, Layout, layouts, proven_precision
from benchmarks.common import Report, library_versions, machine_facts, print_table, save_bars
from benchmarks.cpu import marked_processes
from benchmarks.fixtures import collect_images, find_bundle
from benchmarks.load import Load, generator_name, run_load
from cluster.session import MARK, SessionOptions, free_port, open_session, usable_cores
from models.bundle import open_bundle

CONNECTIONS = (16, 32)
SECONDS_TO_ROUTE = 60
NUM_FINALISTS = 2  # layouts of the ceiling that are measured in every repetition


@dataclass(frozen=True)
class Pace:
    """How long to measure."""

    repetitions: int
    screening_seconds: float
    ceiling_seconds: float
    load_seconds: float


PACES = {True: Pace(3, 2, 3, 4), False: Pace(5, 4, 6, 8)}


@dataclass(frozen=True)
class Setting:
    """What is measured, and how it is served."""

    bundle: str
    precision: str
    images: Path
    replicas: int | None
    threads: int | None
    decode_threads: int | None


def measure(setting: Setting, pace: Pace, report: Report) -> dict[str, list[float]]:
    """Fill the report and return images per second by name, one value per repetition."""
    plain = {name: value for name, value in os.environ.items() if name != MARK}
    finalists = _screen(setting, pace, plain)
    series: dict[str, list[float]] = {}
    ratios: list[float] = []
    loads: dict[int, list[Load]] = {count: [] for count in CONNECTIONS}
    with _served(setting) as (url, mark):
        crews = [
            Crew(c, setting.bundle, setting.images, setting.precision, plain) for c in finalists
        ]
        run_load(url, setting.images, connections=16, seconds=3, environment=plain)
        try:
            for _ in range(pace.repetitions):
                with _frozen(mark):
                    ceilings = {crew.layout.name: crew.run(pace.ceiling_seconds) for crew in crews}
                for count in CONNECTIONS:
                    loads[count].append(_load(url, setting, count, pace.load_seconds, plain))
                raws = {
                    f"HTTP, {count} connections": loads[count][-1].per_second for count in loads
                }
                ratios.append(max(raws.values()) / max(ceilings.values()))
                for name, value in {**ceilings, **raws}.items():
                    series.setdefault(name, []).append(value)
        finally:
            for crew in crews:
                crew.close()
    _summarise(report, ratios, series, loads)
    return series


def _screen(setting: Setting, pace: Pace, environment: Mapping[str, str]) -> list[Layout]:
    """Run every layout once, briefly, and return the best ones."""
    speeds = {}
    for layout in layouts(usable_cores()):
        crew = Crew(layout, setting.bundle, setting.images, setting.precision, environment)
        speeds[layout] = crew.run(pace.screening_seconds)
        crew.close()
    rows = [(layout.name, f"{speed:.0f}") for layout, speed in speeds.items()]
    print_table("decode+infer without a server", ("layout", "images/s"), rows)
    return sorted(speeds, key=lambda layout: -speeds[layout])[:NUM_FINALISTS]


@contextmanager
def _served(setting: Setting) -> Iterator[tuple[str, str]]:
    """Serve the bundle on a Ray of our own; yield the URL and the mark of its processes."""
    from ray import serve

    from serve_app.app import build

    port = free_port()
    args = {
        "bundle": str(Path(setting.bundle).absolute())
        if "://" not in setting.bundle
        else setting.bundle,
        "replicas": setting.replicas,
        "threads": setting.threads,
        "decode_threads": setting.decode_threads,
    }
    with (
        tempfile.TemporaryDirectory(prefix="sl-") as home,
        open_session(SessionOptions(Path(home))),
    ):
        serve.start(
            http_options={"host": "127.0.0.1", "port": port},
            logging_config={"enable_access_log": False},
        )
        serve.run(build(args), name="model", route_prefix="/v2/models/bench")
        url = f"http://127.0.0.1:{port}/v2/models/bench"
        _wait_until_routed(url)
        yield f"{url}/classify?scores=none", os.environ[MARK]


def _wait_until_routed(url: str) -> None:
    from urllib.error import URLError
    from urllib.request import urlopen

    deadline = time.monotonic() + SECONDS_TO_ROUTE
    while True:
        try:
            with urlopen(f"{url}/ready", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (URLError, OSError):
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


@contextmanager
def _frozen(mark: str) -> Iterator[None]:
    """Stop every process of the session while the ceiling is measured."""
    found = marked_processes(mark)
    for process in found:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in found:
            process.send_signal(signal.SIGCONT)
        time.sleep(1.0)


def _load(
    url: str, setting: Setting, connections: int, seconds: float, environment: Mapping[str, str]
) -> Load:
    return run_load(
        url, setting.images, connections=connections, seconds=seconds, environment=environment
    )


def _summarise(
    report: Report,
    ratios: Sequence[float],
    series: Mapping[str, Sequence[float]],
    loads: Mapping[int, Sequence[Load]],
) -> None:
    medians = {name: statistics.median(values) for name, values in series.items()}
    raw = {name: value for name, value in medians.items() if name.startswith("HTTP")}
    report.ratios["raw_to_ceiling"] = statistics.median(ratios)
    report.figures["ceiling_images_per_s"] = max(v for n, v in medians.items() if n not in raw)
    report.figures["ceiling_layout"] = max(
        (name for name in medians if name not in raw), key=lambda name: medians[name]
    )
    report.figures["raw_images_per_s"] = max(raw.values())
    for count, runs in loads.items():
        report.figures[f"raw_c{count}_images_per_s"] = raw[f"HTTP, {count} connections"]
        report.figures[f"raw_c{count}_p50_ms"] = statistics.median(run.p50_ms for run in runs)
        report.figures[f"raw_c{count}_p99_ms"] = statistics.median(run.p99_ms for run in runs)
        failed = sum(run.num_failed for run in runs)
        if failed:
            report.failures[f"raw_c{count}"] = failed


def main() -> int:
    """Measure, print a table, save a plot, and end with one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--bundle", help="URI; by default the demo's newest, else one made here")
    parser.add_argument(
        "--images", type=Path, help="a folder; by default clothing or synthetic ones"
    )
    parser.add_argument("--replicas", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--decode-threads", type=int)
    options = parser.parse_args()
    bundle = find_bundle(options.bundle)
    report = Report("serving", machine=machine_facts())
    report.versions = library_versions({"load_generator": generator_name()})
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        report.figures["images"] = collect_images(options.images, images)
        precision = proven_precision(open_bundle(bundle))
        report.figures["bundle"] = open_bundle(bundle).manifest.label
        report.figures["precision"] = precision
        setting = Setting(
            bundle, precision, images, options.replicas, options.threads, options.decode_threads
        )
        series = measure(setting, PACES[options.quick], report)
    rows = [
        (name, f"{statistics.median(v):.0f}", f"{min(v):.0f} to {max(v):.0f}")
        for name, v in series.items()
    ]
    print_table("images per second", ("what", "median", "range"), rows)
    print(f"plot: {save_bars('serving', 'images per second', series)}")
    print(report.line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
