"""`python -m benchmarks.serving [--quick]`: Sightline against the machine and against its peers.

The ceiling is decode+infer without any server, the best of every sensible layout. Sightline is
served through Ray Serve and HAProxy; each peer in an environment of its own, with the same model
and decoder and as its own documentation does it. All are measured in turns, each asleep (SIGSTOP)
while another is measured, since idle daemons take CPU too. A run that was killed goes on where it
was.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.ceiling import proven_precision
from benchmarks.common import OUT, Report, library_versions, machine_facts, print_table
from benchmarks.fixtures import ROOT, collect_images, find_bundle
from benchmarks.load import generator_name
from benchmarks.page import as_markdown, write_section
from benchmarks.peers.table import PEERS
from benchmarks.photos import collect_cells, write_large
from benchmarks.serving.large import measure_large
from benchmarks.serving.pictures import save_pictures
from benchmarks.serving.plan import FULL, QUICK, Setting
from benchmarks.serving.results import COLUMNS, rows, screened, summarise
from benchmarks.serving.sightline import Layout
from benchmarks.serving.steps import Steps
from benchmarks.serving.waves import Waves
from cluster.environment import MARK
from jobs.console import bar, make_console
from models.bundle import open_bundle

STEPS = OUT / "serving.steps.jsonl"
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
TITLE = "Serving"
INTRODUCTION = (
    "Medians of interleaved repetitions; a ratio is the median of the ratios of each repetition. "
    "Rates are Poisson arrivals at shares of each server's own capacity, and what was never "
    "answered counts with the time it has waited."
)


def measure(setting: Setting, folders: dict[str, Path], store: Path, steps: Steps) -> None:
    """Take every step that has not been taken."""
    environment = {name: value for name, value in os.environ.items() if name != MARK}
    waves = Waves(setting, steps, folders, store)
    with bar(make_console(), "measuring", waves.num_steps()) as advance:
        advance(len(steps))
        steps.on_step = lambda: advance(1)
        if ("large",) not in steps:
            photo = folders["12 megapixels"] / "large.jpg"
            steps.add(("large",), measure_large(setting.bundle, photo))
        waves.same(waves.screen(environment), environment)
        waves.own()
        if setting.pace.is_whole:
            waves.kinds()


def collect(images: Path | None, made: Path) -> tuple[str, dict[str, Path]]:
    """Return where the photos come from, and the folders of images, by what is in them."""
    source = collect_images(images, made / "photos")
    folders = {"photos": made / "photos"}
    if collect_cells(made / "cells"):
        folders["solar cells"] = made / "cells"
    write_large(made / "large", made / "photos")
    folders["12 megapixels"] = made / "large"
    return source, folders


def revision() -> str:
    """Return the commit that is measured, with a mark for changes on top of it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, save the plots, and end with one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="what matters most")
    parser.add_argument("--bundle", help="URI; by default the demo's newest, else one made here")
    parser.add_argument(
        "--images", type=Path, help="a folder; by default clothing or synthetic ones"
    )
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--fresh", action="store_true", help="do not go on with a run begun before")
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.name}, too")
    parser.add_argument("--replicas", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--decode-threads", type=int)
    given = parser.parse_args(arguments)
    bundle = find_bundle(given.bundle)
    with tempfile.TemporaryDirectory() as made:
        source, folders = collect(given.images, Path(made))
        setting = Setting(
            bundle,
            proven_precision(open_bundle(bundle)),
            folders["photos"],
            Layout(given.replicas, given.threads, given.decode_threads),
            tuple(given.peers),
            QUICK if given.quick else FULL,
        )
        report = Report("serving", machine=machine_facts())
        report.versions = library_versions({"load_generator": generator_name()})
        facts = {**setting.facts(), "images": source, "revision": revision()}
        machine = {name: report.machine[name] for name in ("cpu", "cores")}
        steps = Steps(STEPS, {**facts, **machine}, is_fresh=given.fresh)
        if steps.num_resumed:
            print(f"going on with a run of {steps.num_resumed} steps (--fresh begins anew)")
        measure(setting, folders, Path(made) / "models", steps)
        report.figures |= {
            "images": source,
            "bundle": open_bundle(bundle).manifest.label,
            "precision": setting.precision,
            "revision": facts["revision"],
        }
    for (_, name), found in steps.below("start"):
        if "version" in found:
            report.versions[str(name)] = str(found["version"])
    summarise(steps, setting, report)
    table = rows(steps, setting)
    if not table:
        steps.finish()  # so that the next run begins anew
        reasons = "; ".join(f"{name}: {reason}" for name, reason in report.failures.items())
        raise SystemExit(f"the ceiling or Sightline itself could not be measured: {reasons}")
    print_table("the ceiling, each layout once", ("layout", "images/s"), screened(steps))
    print_table("medians of interleaved repetitions", COLUMNS, [row.cells for row in table])
    print_table("ratios", ("ratio", ""), [(k, f"{v:.3f}") for k, v in report.ratios.items()])
    for name, reason in report.failures.items():
        print(f"{name}: {reason}")
    for path in save_pictures(table, steps, setting):
        print(f"plot: {path}")
    if given.record:
        cells = [row.cells for row in table]
        write_section(RESULTS, TITLE, as_markdown(TITLE, INTRODUCTION, report, COLUMNS, cells))
        print(f"written: {RESULTS}")
    (OUT / "serving.json").write_text(report.line() + "\n")
    steps.finish()
    print(report.line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
