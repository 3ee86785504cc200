"""`python -m jobs.data.pack SOURCE DEST [key=value ...]`: labelled images into Parquet shards that
training streams from and that anything can read.

key=value are settings of the `data` section, as source=manifest or label_column=verdict. Progress
and tables go to standard error; the last line on standard output is the result as JSON. A run that
was killed goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.session import SessionOptions, open_session
from jobs.command import run_command
from jobs.config import load_section, quoted
from jobs.console import make_console, print_result, readable_errors, set_up_logging
from jobs.data.config import DataConfig
from jobs.data.pack_plan import MIB, PackOptions
from jobs.data.packing import run_packing
from jobs.submitted import refuse_lost_results, refuse_no_unicode

MAX_SHARD_MIB = 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack one set from the command line; returns the exit status."""
    given = parser().parse_intermixed_args(arguments)
    console = make_console()
    set_up_logging()
    with readable_errors(console):
        refuse_no_unicode({"SOURCE": given.source, "DEST": given.dest})
        overrides = [f"uri={quoted(given.source)}", *given.overrides]
        config = load_section(DataConfig, given.config, "data", overrides)
        refuse_lost_results({"SOURCE": config.uri, "DEST": given.dest}, Path.cwd())
        options = PackOptions(
            uri=given.dest,
            max_side=given.max_side,
            shard_bytes=given.shard_mib and given.shard_mib * MIB,
            seed=given.seed,
            overwrite=given.overwrite,
        )
        started = time.monotonic()
        with open_session(SessionOptions()):
            packed = run_packing(config, options, console)
    seconds = time.monotonic() - started
    files = packed.about["shards"]
    num_bytes = sum(file["bytes"] for file in files)
    if packed.is_finished_before:
        console.print(
            f"{packed.uri} holds this set already, packed with the same settings; if the images "
            "have changed since, --overwrite packs them again",
            highlight=False,
        )
    console.print(
        f"packed {packed.num_images:,} images into {len(files):,} shards of "
        f"{num_bytes / MIB:,.0f} MiB, {packed.uri}",
        highlight=False,
    )
    line = {
        "uri": packed.uri,
        "num_images": packed.num_images,
        "num_shards": len(files),
        "num_bytes": num_bytes,
        "num_quarantined": packed.about["num_quarantined"],
        "num_shards_before": packed.num_before,
        "is_finished_before": packed.is_finished_before,
        "sha256": packed.digest,
        "seconds": round(seconds, 1),
    }
    print_result(line)
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.data.pack", description=__doc__)
    parser.add_argument("source", help="path or URI, as data.uri")
    parser.add_argument("dest", help="an empty or new folder or bucket prefix")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as source=manifest")
    parser.add_argument("--config", type=Path, help="take the data section of a training config")
    parser.add_argument(
        "--max-side",
        type=_positive,
        metavar="PIXELS",
        help="shrink images whose longer side is longer; by default they stay as they are",
    )
    parser.add_argument(
        "--shard-mib",
        type=_shard_mib,
        metavar="MIB",
        help="size of a shard, 1 to 1024: each task has one in memory (default: 8 to 128)",
    )
    parser.add_argument(
        "--seed", type=_whole, default=0, help="of the order (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the set in DEST")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 on, got {text!r}")
    return int(text)


def _shard_mib(text: str) -> int:
    value = _positive(text)
    if value > MAX_SHARD_MIB:
        raise argparse.ArgumentTypeError(f"expected at most {MAX_SHARD_MIB}, got {text}")
    return value


if __name__ == "__main__":
    run_command(main)
