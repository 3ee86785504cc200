"""What people see of a data set: images per class and split, notes, and what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.console import Advance, bar
from jobs.data.config import DataConfig
from jobs.data.index import Index, Matcher, build_index
from jobs.data.quarantine import Broken
from jobs.data.sources import Progress
from jobs.data.split import SPLITS
from models.preprocess import PreprocessSpec

QUARANTINE_SHOWN = 5


def read_index(
    config: DataConfig,
    spec: PreprocessSpec,
    console: Console,
    *,
    cpu_limit: float | None = None,
    matcher: Matcher | None = None,
) -> Index:
    """Build the index of a set under a progress bar, and print what it holds; with a `matcher`, of
    one that a model is judged by.

    Raises the errors of `build_index`.
    """
    with ExitStack() as bars:
        index = build_index(
            config,
            spec,
            _shown(bars, console, "reading images"),
            cpu_limit=cpu_limit,
            container_progress=_shown(bars, console, "reading tar files"),
            matcher=matcher,
        )
    console.print(index_table(index))
    for warning in index.warnings:
        console.print(f"[yellow]note:[/] {escape(warning)}", highlight=False)
    return index


def _shown(bars: ExitStack, console: Console, what: str) -> Progress:
    """Return a progress that opens its bar when it is first called: some sets need no reading."""
    done = 0
    advance: Advance | None = None

    def progress(count: int, total: int) -> None:
        nonlocal done, advance
        if advance is None:
            advance = bars.enter_context(bar(console, what, total))
        advance(count - done, total)
        done = count

    return progress


def index_table(index: Index) -> Table:
    """Return the images per class and split."""
    table = Table(title="images", title_justify="left")
    table.add_column("class")
    for name in (*SPLITS, "all"):
        table.add_column(name, justify="right")
    for name, row in index.counts.items():
        table.add_row(
            escape(name), *(f"{row[split]:,}" for split in SPLITS), f"{sum(row.values()):,}"
        )
    table.add_section()
    totals = [index.num_images(split) for split in SPLITS]
    table.add_row("all", *(f"{total:,}" for total in totals), f"{sum(totals):,}")
    return table


def print_broken(broken: Sequence[Broken], where: str, console: Console) -> None:
    """Say how many images were left out, where they are listed, and how the list begins."""
    console.print(
        f"[yellow]note:[/] {len(broken):,} images left out, listed in {escape(where)}:",
        highlight=False,
    )
    for one in broken[:QUARANTINE_SHOWN]:
        console.print(f"  {one.path}: {one.reason}", highlight=False, markup=False)
