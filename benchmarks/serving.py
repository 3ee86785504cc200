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
from typing import Any

import yaml

from benchmarks.ceiling import Crew, Layout, layouts, proven_precision
from benchmarks.common import Report, library_versions, machine_facts, print_table, save_bars
from benchmarks.cpu import cpu_seconds, per_image_ms
from benchmarks.fixtures import ROOT, collect_images, find_bundle
from benchmarks.load import Load, generator_name, run_load
from cluster.environment import MARK, free_port, usable_cores
from cluster.processes import marked_processes
from cluster.session import SessionOptions, open_session
from models.bundle import open_bundle
from models.kinds import find_kind

CONNECTIONS = (16, 32)
SECONDS_TO_ROUTE = 120
SERVE_FILE = ROOT / "configs" / "serve" / "local.yaml"
QUIET = 0.05  # what others may take of the CPU before a run is called noisy
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
    bare_ms: list[float] = []
    spent: list[dict[str, float]] = []
    noise: list[float] = []
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
                    bare_ms.append(min(crew.cpu_ms_per_image for crew in crews))
                    noise.append(max(crew.others_share for crew in crews))
                for count in CONNECTIONS:
                    before = cpu_seconds(mark)
                    loads[count].append(_load(url, setting, count, pace.load_seconds, plain))
                    num_images = loads[count][-1].per_second * pace.load_seconds
                    spent.append(per_image_ms(before, cpu_seconds(mark), num_images))
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
    _summarise_cpu(report, bare_ms, spent)
    report.machine["others_cpu_share"] = statistics.median(noise)
    if statistics.median(noise) > QUIET:
        report.failures["noise"] = (
            f"other processes took {statistics.median(noise):.0%} of the machine while the ceiling "
            "was measured: the ratio cannot be believed; run it again on a quiet machine"
        )
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
    """Serve the bundle on a Ray of our own, as `serve deploy` does; yield the URL to send images
    to, and the mark of the session's processes.
    """
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    port = free_port()
    with (
        _importable(),
        tempfile.TemporaryDirectory(prefix="sl-") as home,
        open_session(SessionOptions(Path(home), dashboard=True)) as session,
    ):
        client = ServeSubmissionClient(session.dashboard_url)
        config = _serve_config(setting, port, Path(home))
        client.deploy_applications(config)
        _wait_until_running(client)
        url = f"http://127.0.0.1:{port}{config['applications'][-1]['route_prefix']}"
        _wait_until_routed(url)
        yield f"{url}/classify", os.environ[MARK]


@contextmanager
def _importable() -> Iterator[None]:
    """Let the processes of the session import the packages of this checkout, installed or not."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _serve_config(setting: Setting, port: int, home: Path) -> dict[str, Any]:
    """Return the serve file of the local machine with the bundle and the layout that are
    measured.
    """
    config: dict[str, Any] = yaml.safe_load(SERVE_FILE.read_text())
    bundle = open_bundle(setting.bundle)
    name, kind = bundle.manifest.name, find_kind(bundle.manifest.kind)
    args = {
        "bundle": bundle.uri,
        **({"label_store": str(home / "labels")} if kind.has_label_map else {}),
        "replicas": setting.replicas,
        "threads": setting.threads,
        "decode_threads": setting.decode_threads,
    }
    config["http_options"]["port"] = port
    del config["grpc_options"]  # HTTP is measured, and gRPC's port may be in use
    for application in config["applications"]:
        if "bundle" in application.get("args", {}):
            application |= {"name": name, "route_prefix": f"/v2/models/{name}", "args": args}
    return config


def _wait_until_running(client: Any) -> None:
    deadline = time.monotonic() + SECONDS_TO_ROUTE
    while True:
        found = client.get_serve_details()["applications"]
        status = {name: application["status"] for name, application in found.items()}
        if status and set(status.values()) == {"RUNNING"}:
            return
        failed = [
            (
                found[name]["message"],
                [each["message"] for each in found[name]["deployments"].values()],
            )
            for name in status
            if "FAILED" in status[name]
        ]
        if failed or time.monotonic() > deadline:
            raise RuntimeError(f"the model is not served: {failed or status}")
        time.sleep(0.5)


def _wait_until_routed(url: str) -> None:
    from urllib.error import URLError
    from urllib.request import urlopen

    deadline = time.monotonic() + SECONDS_TO_ROUTE
    while True:
        try:
            with urlopen(f"{url}/ready", timeout=5):
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


def _summarise_cpu(
    report: Report, bare_ms: Sequence[float], spent: Sequence[Mapping[str, float]]
) -> None:
    """Say where the CPU time of an image goes, beside what decode+infer alone takes."""
    roles = {role: statistics.median(run.get(role, 0.0) for run in spent) for role in spent[0]}
    whole = statistics.median(sum(run.values()) for run in spent)
    report.figures["ceiling_cpu_ms_per_image"] = statistics.median(bare_ms)
    report.figures["raw_cpu_ms_per_image"] = whole
    rows = [(role, f"{ms:.3f}", f"{ms / whole:.1%}") for role, ms in roles.items() if ms > 0]
    rows += [
        ("all", f"{whole:.3f}", ""),
        ("decode+infer alone", f"{statistics.median(bare_ms):.3f}", ""),
    ]
    print_table("CPU time per image", ("processes", "ms", "share"), rows)


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
