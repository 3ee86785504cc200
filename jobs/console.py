"""What entry points share: logging set-up, progress bars, and errors that people can read.

Tables and bars go to standard error, so that standard output holds results only.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cluster.session import NoRayError
from models.errors import SightlineError

# Libraries that report each of their steps as news.
CHATTY = (
    "onnx_ir",
    "onnxscript",
    "torch.onnx",
    "ray.data",
    "ray.train",
    "ray.serve",
    "httpx",
    "matplotlib",
)

SECONDS_BETWEEN_LINES = 20.0


class Advance(Protocol):
    """Moves a bar on; `total` may come with the first call, when it was not known before."""

    def __call__(self, count: int, total: int | None = None) -> None: ...


def set_up_logging(level: int = logging.WARNING) -> None:
    """Send our log lines to standard error, and only warnings of the libraries."""
    logging.basicConfig(
        level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)


def make_console() -> Console:
    """Return the console for tables and bars; as wide as the terminal, or 100 columns without
    one.
    """
    return Console(stderr=True, width=None if sys.stderr.isatty() else 100)


def print_result(line: Mapping[str, Any]) -> None:
    """Print the result for machines as one line of JSON on standard output.

    In ASCII: no terminal's encoding, and no path that is no Unicode, can keep it from arriving.
    """
    print(json.dumps(line), flush=True)


@contextmanager
def bar(console: Console, what: str, total: int | None) -> Iterator[Advance]:
    """Show a progress bar with rate and time left; without a terminal, a line now and then."""
    if not console.is_terminal:
        with _lines(console, what, total) as advance:
            yield advance
        return
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total, note="")

        def advance(count: int, total: int | None = None) -> None:
            progress.update(task, advance=count, total=total)
            speed = progress.tasks[task].speed
            progress.update(task, note=f"{speed:,.0f}/s" if speed else "")

        yield advance


@contextmanager
def _lines(console: Console, what: str, total: int | None) -> Iterator[Advance]:
    """Report progress to a log file: after a while, and then when it is done."""
    started = shown = time.monotonic()
    done, expected = 0, total

    def show() -> None:
        elapsed = time.monotonic() - started
        of_all = f"{done:,}" if expected is None else f"{done:,} of {expected:,}"
        console.print(
            f"{what}: {of_all}, {elapsed:.0f} s, {done / elapsed:,.0f}/s", highlight=False
        )

    def advance(count: int, total: int | None = None) -> None:
        nonlocal done, expected, shown
        done += count
        expected = expected if total is None else total
        if time.monotonic() - shown >= SECONDS_BETWEEN_LINES:
            shown = time.monotonic()
            show()

    yield advance
    show()


@contextmanager
def readable_errors(console: Console) -> Iterator[None]:
    """Turn an error raised on purpose into one message and exit status 1; a defect of ours keeps
    its traceback.
    """
    try:
        yield
    except (SightlineError, NoRayError) as error:
        # In a log a message stays one line, so that what it names can be searched for.
        console.print(
            f"[bold red]{type(error).__name__}[/]: {escape(str(error))}",
            highlight=False,
            soft_wrap=not console.is_terminal,
        )
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        console.print("interrupted")
        raise SystemExit(130) from None
