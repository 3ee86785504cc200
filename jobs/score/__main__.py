"""`python -m jobs.score SOURCE --url http://host:8000/v2/models/caps --output scores.parquet`:
score a folder, a bucket prefix, a manifest or one image over HTTP, into one table.

Progress and tables go to standard error; the last line on standard output is the result as JSON.
Exit status: 0 when the output is written, 1 when the run stopped or too many images have no answer,
2 for a wrong option, 130 when it was interrupted. A run that stopped goes on with --resume.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from jobs.console import make_console, readable_errors, set_up_logging
from jobs.score.columns import Scores
from jobs.score.exchange import Key
from jobs.score.output import check_output, failed_share
from jobs.score.parts import read_journal
from jobs.score.run import AlreadyFinished, Options, Outcome, run_scoring, work_store
from jobs.submitted import refuse_lost_results
from models.errors import ConfigError, SightlineError

INTERRUPTED = 130
DEFAULT_KEY = "SIGHTLINE_KEY"
OPTIONS_OF_COMMAND = ("key_env", "max_failed_share")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one scoring from the command line; returns the exit status."""
    given = parser().parse_args(arguments)
    console = make_console()
    set_up_logging()
    with _ended_by_sigterm(), readable_errors(console):
        values = {k: v for k, v in vars(given).items() if k not in OPTIONS_OF_COMMAND}
        refuse_lost_results({"--output": given.output}, Path.cwd())
        options = Options(**values, key=read_key(given.key_env))
        try:
            outcome = run_scoring(options, console)
        except AlreadyFinished:
            console.print(f"{options.output} is finished already", highlight=False)
            share = failed_share(check_output(options.output, has_embedding=False))
            line = {"output": options.output, "is_finished_before": True, "failed_share": share}
            print(json.dumps(line))
            return _status(share, given.max_failed_share, options.output, console)
        except (SightlineError, KeyboardInterrupt):
            if _is_unfinished(options.output):
                console.print("what is scored is kept: go on with --resume", highlight=False)
            raise
        outcome.tally.show(console)
        if options.truth and not outcome.tally.pairs:
            console.print("--truth: no image has a truth; there is no class folder, or no label")
        print(json.dumps(result_line(outcome), ensure_ascii=False))
    return _status(outcome.tally.failed_share, given.max_failed_share, outcome.output, console)


def _status(share: float, allowed: float, output: str, console: Console) -> int:
    """Return the exit status for so many images without an answer, and say why it is not 0."""
    if share <= allowed:
        return 0
    console.print(
        f"[bold red]{share:.1%} of the images have no answer[/], more than --max-failed-share "
        f"{allowed:g} allows; {output} says why, in the column error; --overwrite scores "
        "all of them again",
        highlight=False,
    )
    return 1


def result_line(outcome: Outcome) -> dict[str, Any]:
    """Return what machines read of a run."""
    num_now = outcome.tally.num_images - outcome.num_before
    return {
        "output": outcome.output,
        **outcome.tally.summary(),
        "num_resumed": outcome.num_before,
        "num_retries": outcome.num_retries,
        "seconds": round(outcome.seconds, 2),
        "images_per_second": round(num_now / max(outcome.seconds, 1e-6), 1),
    }


def read_key(variable: str | None) -> Key | None:
    """Return the access key from the environment. Raises `ConfigError` where a named one is
    missing.
    """
    value = os.environ.get(variable or DEFAULT_KEY, "").strip()
    if not value:
        if variable:
            raise ConfigError(f"--key-env: the environment variable {variable} is not set")
        return None
    if not (value.isascii() and value.isprintable()):
        raise ConfigError(
            f"the access key in {variable or DEFAULT_KEY} has characters that no key has"
        )
    return Key(value, variable or DEFAULT_KEY)


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    made = argparse.ArgumentParser(
        prog="python -m jobs.score",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("source", help="folder, bucket prefix, image, or manifest (CSV, JSON lines, Parquet)")
    add("--url", required=True, help="of the model, as http://localhost:8000/v2/models/caps")
    add("--output", required=True, help="path or URI that ends with .parquet or .csv")
    add("--key-env", metavar="NAME", help=f"variable with the access key (default {DEFAULT_KEY})")
    add("--resume", action="store_true", help="go on with an unfinished run")
    add("--overwrite", action="store_true", help="replace the output and an unfinished run")

    what = made.add_argument_group("what is written")
    what.add_argument(
        "--scores",
        choices=get_args(Scores),
        default="top",
        help="the best labels in ranked columns, one column for every label, or the answer only",
    )
    what.add_argument("--top-k", type=_whole(1), default=3, help="how many with --scores top (3)")
    what.add_argument("--embeddings", action="store_true", help="vectors too, of a classifier")
    what.add_argument(
        "--truth",
        action="store_true",
        help="the class folder, or the manifest's label, as a column; and how often it was met",
    )
    what.add_argument("--path-column", default="path", help="of a manifest (path)")
    what.add_argument("--label-column", default="label", help="of a manifest, for --truth (label)")
    what.add_argument(
        "--min-revision", type=_whole(0), help="labels of this revision or a later one"
    )
    what.add_argument(
        "--max-failed-share",
        type=_share,
        default=0.05,
        help="more images without an answer than this give exit status 1 (0.05)",
    )

    how = made.add_argument_group("how it is asked")
    default = Options("", "", "")
    how.add_argument(
        "--concurrency",
        type=_whole(1),
        default=default.concurrency,
        help=f"requests at a time ({default.concurrency})",
    )
    how.add_argument(
        "--batch",
        type=_whole(1),
        default=default.batch,
        help=f"images in a request, within the server's limits ({default.batch})",
    )
    how.add_argument("--readers", type=_whole(1), help="threads that read (2 on a disk, else 16)")
    how.add_argument(
        "--patience",
        type=_seconds,
        default=default.patience,
        help="seconds without any answer after which the run stops (60)",
    )
    how.add_argument(
        "--timeout", type=_seconds, default=default.timeout, help="seconds for one answer (60)"
    )
    return made


def _is_unfinished(output: str) -> bool:
    try:
        return read_journal(work_store(check_output(output, has_embedding=False))) is not None
    except SightlineError:
        return False


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM, with which a cluster ends a job, do what Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _whole(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least}, got {text!r}")
        return int(text)

    return whole


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, got {text!r}")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds, more than 0, got {text!r}")
    return value


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        # Not as Python ends: it would wait for requests under way, up to --timeout.
        sys.stdout.flush()
        os._exit(INTERRUPTED)
