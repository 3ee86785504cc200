"""`python -m jobs.score SOURCE DEST --bundle .sightline/models/caps/3`: score a folder, a bucket
prefix, a manifest, a packed set, tar files or one image into one table, straight from a bundle, by
workers on Ray. With `--url http://host:8000/v2/models/caps` instead: by a served model over HTTP.

Progress and tables go to standard error; the last line on standard output is the result as JSON.
Exit status: 0 when the output is written, 1 when the run stopped or did not begin (options that do
not go together) or too many images have no answer, 2 for an option that there is not or a value
that it cannot have, 130 when it was interrupted. A run that stopped goes on with --resume.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from jobs.command import run_command
from jobs.console import make_console, print_result, readable_errors, set_up_logging
from jobs.interrupt import ended_by_sigterm
from jobs.score.bundled import Running
from jobs.score.columns import Scores
from jobs.score.exchange import Key
from jobs.score.output import check_output, failed_share
from jobs.score.run import TOP_K, AlreadyFinished, Options, Outcome, run_scoring
from jobs.score.served import Asking
from jobs.score.work import has_journal, work_store
from jobs.submitted import refuse_lost_results, refuse_no_unicode
from models.errors import ConfigError, SightlineError

DEFAULT_KEY = "SIGHTLINE_KEY"
# What belongs to one of the two ways only, with what it is where it is not given.
OF_URL: dict[str, Any] = {"concurrency": 4, "batch": 16, "patience": 60.0, "timeout": 60.0}
OF_BUNDLE: dict[str, Any] = {"labels": None, "device": "cpu", "workers": None, "threads": None}
OF_BOTH = ("min_revision", "readers")
OF_RUN = (
    *("source", "scores", "top_k", "embeddings", "truth", "path_column", "label_column"),
    *("resume", "overwrite"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one scoring from the command line; returns the exit status."""
    given = parser().parse_intermixed_args(arguments)  # DEST may come behind options
    console = make_console()
    set_up_logging()
    with ended_by_sigterm(), readable_errors(console):
        options = read_options(given)
        refuse_no_unicode({"SOURCE": options.source, "the output": options.output})
        refuse_lost_results({"the output": options.output}, Path.cwd())
        try:
            outcome = run_scoring(options, console)
        except AlreadyFinished:
            console.print(f"{options.output} is finished already", highlight=False)
            share = failed_share(check_output(options.output, has_embedding=False))
            line = {"output": options.output, "is_finished_before": True, "failed_share": share}
            print_result(line)
            return _status(share, given.max_failed_share, options.output, console)
        except (SightlineError, KeyboardInterrupt):
            if _is_unfinished(options.output):
                console.print("what is scored is kept: go on with --resume", highlight=False)
            raise
        outcome.tally.show(console)
        if options.truth and not outcome.tally.pairs:
            console.print("--truth: no image has a truth; there is no class folder, or no label")
        line = result_line(outcome)
        num_now = outcome.tally.num_images - outcome.num_before
        console.print(
            f"{num_now:,} images in {outcome.seconds:,.1f} s, {line['images_per_second']:,}/s: "
            f"{outcome.told}",
            highlight=False,
        )
        print_result(line)
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


def read_options(given: argparse.Namespace) -> Options:
    """Return what a run is told. Raises `ConfigError` for options that do not go together."""
    values = vars(given)
    if (given.dest is None) == (given.output is None):
        raise ConfigError("give the output once, behind the source or as --output")
    if (given.url is None) == (given.bundle is None):
        raise ConfigError(
            "give either --bundle, to score on workers of its own, or --url, to ask a served model"
        )
    mine, others = (OF_URL, OF_BUNDLE) if given.bundle is None else (OF_BUNDLE, OF_URL)
    stray = [name for name in others if values[name] is not None]
    if given.bundle is not None and given.key_env is not None:
        stray.append("key_env")
    if stray:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in stray)
        raise ConfigError(f"{names} does not go with {'--url' if mine is OF_URL else '--bundle'}")
    how: dict[str, Any] = {name: values[name] for name in OF_BOTH}
    how |= {n: default if values[n] is None else values[n] for n, default in mine.items()}
    return Options(
        **{name: values[name] for name in OF_RUN},
        output=given.output if given.dest is None else given.dest,
        how=Running(given.bundle, **how)
        if given.bundle is not None
        else Asking(given.url, read_key(given.key_env), **how),
    )


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
    add("source", help="folder, bucket prefix, image, manifest, packed set, tar files")
    add("dest", nargs="?", help="the output: path or URI that ends with .parquet or .csv")
    add("--bundle", metavar="URI", help="score with it by workers on Ray: <store>/<name>/<version>")
    add("--url", help="score by a served model, as http://localhost:8000/v2/models/caps")
    add("--output", help="the output, in place of DEST")
    add("--resume", action="store_true", help="go on with an unfinished run")
    add("--overwrite", action="store_true", help="replace the output and an unfinished run")

    what = made.add_argument_group("what is written")
    what.add_argument(
        "--scores",
        choices=get_args(Scores),
        default="top",
        help="the best labels in ranked columns, one column for every label, or the answer only",
    )
    what.add_argument("--top-k", type=_whole(1), help=f"how many with --scores top ({TOP_K})")
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

    how = made.add_argument_group("how it is scored")
    how.add_argument("--readers", type=_whole(1), help="threads that read (2 on a disk, else 16)")
    own = made.add_argument_group("with --bundle")
    own.add_argument("--labels", metavar="URI", help="label store, of a model of kind dynamic")
    own.add_argument("--device", choices=("cpu", "cuda"), help="what to run on (cpu)")
    own.add_argument("--workers", type=_whole(1), help="how many (as Ray has CPUs or GPUs)")
    own.add_argument("--threads", type=_whole(1), help="of each worker (up to 4; with GPUs, more)")
    asked = made.add_argument_group("with --url")
    asked.add_argument(
        "--key-env", metavar="NAME", help=f"variable with the access key ({DEFAULT_KEY})"
    )
    asked.add_argument("--concurrency", type=_whole(1), help="requests at a time (4)")
    asked.add_argument(
        "--batch", type=_whole(1), help="images in a request, within the server's limits (16)"
    )
    asked.add_argument(
        "--patience",
        type=_seconds,
        help="seconds without any answer after which the run stops (60)",
    )
    asked.add_argument("--timeout", type=_seconds, help="seconds for one answer (60)")
    return made


def _is_unfinished(output: str) -> bool:
    try:
        return has_journal(work_store(check_output(output, has_embedding=False)))
    except SightlineError:
        return False


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
    run_command(main)
