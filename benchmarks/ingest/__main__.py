"""`python -m benchmarks.ingest [--quick]`: images into a training loop, against the machine and
against other loaders.

The ceiling is reading, decoding and resizing on all cores without any loader, the best of several
layouts. Every loader reads in a process of its own, in turns, shuffled in its own way; those with a
number of workers get the best of several. What counts is a window in the middle of a pass. A run
that was killed goes on where it was.

`--quick` takes some 4 minutes on 2 cores. Before its clock the sets are made and the libraries
installed, once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import (
    OUT,
    Report,
    ending_by_exception,
    library_versions,
    machine_facts,
    print_table,
)
from benchmarks.fixtures import PHOTOS, ROOT
from benchmarks.ingest.memory import synthetic_set
from benchmarks.ingest.pictures import save_picture
from benchmarks.ingest.plan import ENTRIES, FULL, QUICK, Setting
from benchmarks.ingest.results import (
    COLUMNS,
    find_missing,
    memory_rows,
    rows,
    screened,
    summarise,
)
from benchmarks.ingest.sets import photo_set
from benchmarks.ingest.waves import Waves
from benchmarks.page import as_markdown, write_section
from benchmarks.serving.__main__ import revision
from benchmarks.serving.steps import Steps

STEPS = OUT / "ingest.steps.jsonl"
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
TITLE = "Ingest"
INTRODUCTION = (
    "Batches of 64 images of 224 x 224 into a loop that only touches them. Medians of interleaved "
    "repetitions, each in a process of its own; a ratio is the median of the ratios of each "
    "repetition. What a loader does before the window and ready-made batches at its start do not "
    "count, but with Ray Data, which decodes gigabytes ahead: its pass counts from its opening, "
    "while its CPU time per image is of the window. A shuffle is judged by Spearman's correlation "
    "of place in storage and in the pass (0 "
    "is uniform), by distinct blocks of 64 neighbours per batch over those of a random sample (1), "
    "and by the design effect of a batch's class shares, were the set stored class by class (1)."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, save the plot, and end with one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ingest", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="what matters most, fewer images")
    parser.add_argument(
        "--images", type=Path, help="a folder of classes; by default clothing or synthetic photos"
    )
    parser.add_argument("--only", nargs="*", default=[], help="loaders whose names hold one of")
    parser.add_argument("--fresh", action="store_true", help="do not go on with a run begun before")
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.name}, too")
    given = parser.parse_args(arguments)
    setting = make_setting(given.images, given.quick, given.only)
    if not setting.names:
        known = "; ".join(entry.name for entry in ENTRIES)
        parser.error(f"--only {' '.join(given.only)}: no loader has that in its name; {known}")
    root = photo_set(setting.images, setting.pace.num_images)
    for size in setting.pace.memory_sizes:
        synthetic_set(size)
    report = Report("ingest", machine=machine_facts())
    facts = {**setting.facts(), "revision": revision()}
    steps = Steps(STEPS, facts, is_fresh=given.fresh)
    if steps.num_resumed:
        print(f"going on with a run of {steps.num_resumed} steps (--fresh begins anew)")
    steps.on_step = lambda: print(".", end="", file=sys.stderr, flush=True)
    waves = Waves(setting, steps, root)
    with ending_by_exception():
        waves.prepare()
        waves.measure()
    print(file=sys.stderr)
    report.versions = library_versions(waves.versions)
    report.figures |= {"images": setting.source, "revision": facts["revision"]}
    summarise(steps, setting, report)
    table = rows(steps, setting)
    missing = find_missing(steps, setting)
    if missing:
        steps.finish()  # so that the next run begins anew
        reasons = "; ".join(f"{name}: {reason}" for name, reason in report.failures.items())
        raise SystemExit(f"{missing} could not be measured: {reasons}")
    cells = [row.cells for row in table]
    print_table("the ceiling, each layout once", ("layout", "images/s"), screened(steps))
    print_table("medians of interleaved repetitions", COLUMNS, cells)
    print_table(
        "memory by the number of images",
        ("images", "all processes MiB", "shared MiB", "images/s", "first batch s"),
        memory_rows(steps),
    )
    print_table("ratios", ("ratio", ""), [(k, f"{v:.3f}") for k, v in report.ratios.items()])
    for name, reason in report.failures.items():
        print(f"{name}: {reason}")
    print(f"plot: {save_picture(table, steps)}")
    if given.record:
        write_section(RESULTS, TITLE, as_markdown(TITLE, INTRODUCTION, report, COLUMNS, cells))
        print(f"written: {RESULTS}")
    (OUT / "ingest.json").write_text(report.line() + "\n")
    steps.finish()
    print(report.line())
    return 0


def make_setting(images: Path | None, is_quick: bool, only: Sequence[str]) -> Setting:
    """Return what is measured, with the photos there are."""
    source = images or (PHOTOS.parent if PHOTOS.is_dir() else None)
    pace = QUICK if is_quick else FULL
    names = tuple(
        entry.name
        for entry in ENTRIES
        if (any(word in entry.name for word in only) if only else pace.is_whole or entry.is_quick)
    )
    described = f"{source.name} repeated" if source else "synthetic photos"
    return Setting(source, f"{pace.num_images:,} of {described}", pace, names)


if __name__ == "__main__":
    sys.exit(main())
