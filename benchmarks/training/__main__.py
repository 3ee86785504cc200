"""`python -m benchmarks.training [--quick]`: training through Sightline against the same steps
without it, and against other trainers.

The ceiling is a plain loop over images in memory, decoded before. All train the same network with
the same random weights on the same images, each in a process of its own, in turns; of the epochs
the first is warm-up. A run that is killed with a checkpoint after each step then shows what going
on costs. A benchmark that was killed goes on where it was.

The figures of a GPU come from `python -m benchmarks.training.gpu`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import (
    OUT,
    Report,
    draw_throughput,
    ending_by_exception,
    library_versions,
    machine_facts,
    make_figure,
    print_table,
)
from benchmarks.fixtures import BACKBONE, PHOTOS, ROOT
from benchmarks.ingest.sets import photo_set
from benchmarks.page import as_markdown, write_section
from benchmarks.serving.__main__ import revision
from benchmarks.serving.steps import Steps
from benchmarks.training.plan import FULL, OURS, PLAIN, PLAIN_KEEPING, QUICK, Setting, entries
from benchmarks.training.results import COLUMNS, Row, rows, summarise
from benchmarks.training.waves import Waves

STEPS = OUT / "training.steps.jsonl"
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
TITLE = "Training"
INTRODUCTION = (
    "All of a network trained with AdamW in fp32, channels last, from random weights; a ratio is "
    "the median of the ratios of each repetition, the speed of a run the median of its epochs but "
    "the first. The plain loop has its images decoded in memory and neither clips gradients nor "
    "moves the learning rate; the others read and decode on the same cores. With freed memory kept "
    "it has what Sightline sets (jobs.train.freed_memory): beside that one stands what Ray costs."
)
COLOURS = {PLAIN: "#c9c9c9", PLAIN_KEEPING: "#c9c9c9", OURS: "#2f6db5"}
OTHER = "#8fb3d9"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, save the plot, and end with one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller images, what matters most")
    parser.add_argument(
        "--images", type=Path, help="a folder of classes; by default clothing or synthetic photos"
    )
    parser.add_argument("--backbone", default=BACKBONE, help="of timm (default: %(default)s)")
    parser.add_argument("--timm-train", type=Path, help="timm's train.py, which pip does not bring")
    parser.add_argument("--fresh", action="store_true", help="do not go on with a run begun before")
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.name}, too")
    given = parser.parse_args(arguments)
    setting, source = make_setting(given)
    root = photo_set(source, setting.pace.num_images)
    report = Report("training", machine=machine_facts())
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
    report.figures |= {
        "images": setting.source,
        "backbone": setting.backbone,
        "side": setting.pace.side,
        "batch_size": setting.pace.batch_size,
        "revision": facts["revision"],
    }
    summarise(steps, setting, report)
    table = rows(steps, setting)
    cells = [row.cells for row in table]
    print_table("medians of interleaved repetitions", COLUMNS, cells)
    print_table("ratios", ("ratio", ""), [(k, f"{v:.3f}") for k, v in report.ratios.items()])
    for name, reason in report.failures.items():
        print(f"{name}: {reason}")
    if table:
        print(f"plot: {save_picture(table)}")
    if given.record and table:
        write_section(RESULTS, TITLE, as_markdown(TITLE, INTRODUCTION, report, COLUMNS, cells))
        print(f"written: {RESULTS}")
    (OUT / "training.json").write_text(report.line() + "\n")
    steps.finish()
    print(report.line())
    return 0 if table else 1


def make_setting(given: argparse.Namespace) -> tuple[Setting, Path | None]:
    """Return what is measured, and where its photos are."""
    pace = QUICK if given.quick else FULL
    source = given.images or (PHOTOS.parent if PHOTOS.is_dir() else None)
    script = None if given.timm_train is None else given.timm_train.resolve()
    chosen = tuple(entry for entry in entries(pace, script) if entry.is_quick or pace is not QUICK)
    described = f"{pace.num_images:,} of {source.name if source else 'synthetic photos'}"
    return Setting(described, given.backbone, pace, chosen), source


def save_picture(table: Sequence[Row]) -> Path:
    """Save the plot to `benchmarks/out` and return where it is."""
    figure = make_figure(10, 1.2 + 0.45 * len(table))
    draw_throughput(
        figure.add_subplot(), {row.name: row.per_second for row in table}, COLOURS, OTHER
    )
    OUT.mkdir(exist_ok=True)
    path = OUT / "training.png"
    figure.savefig(path, dpi=120)
    return path


if __name__ == "__main__":
    sys.exit(main())
