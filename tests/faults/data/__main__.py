"""`python -m tests.faults.data [--points 10]`: kill packing, batch scoring and the processes that
read and score, at random moments, and compare what is there in the end with what an undisturbed run
leaves, byte by byte.

The table goes to standard error as it grows, and once more to standard output with a line for
machines. The exit status is 1 if something differs, or does not end.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray

from benchmarks.common import ending_by_exception
from jobs.console import bar, make_console
from tests.bundles import tiny_bundle
from tests.conftest import opened_ray
from tests.faults.data.kinds import KINDS, Site, digest_of, run_alone, run_killed
from tests.faults.data.table import HEAD, Row, save, table
from tests.jobs.data.images import jpeg, write

NUM_IMAGES, SIDE = 3_000, 220
MOST_RUNS = 20  # of a kind; a kill that comes too late is drawn anew


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.data", description=__doc__)
    parser.add_argument("--points", type=int, default=10, help="kills of each kind")
    parser.add_argument("--per-run", type=int, default=5, help="how many of them in one run")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--images", type=Path, default=None, help="a folder per class; else made")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; else random")
    parser.add_argument("--limit-seconds", type=float, default=300, help="for one start")
    given = parser.parse_args(arguments)
    seed = secrets.randbelow(10**6) if given.seed is None else given.seed
    console = make_console()
    rows: list[Row] = []
    with _opened_site(given.images, given.limit_seconds) as site, ending_by_exception():
        console.print(f"seed {seed}\n{HEAD}", highlight=False)
        with bar(console, "kills", len(given.kinds) * given.points) as advance:
            for name in given.kinds:
                for row in _killed(site, name, given, seed):
                    rows.append(row)
                    console.print(str(row), highlight=False)
                    advance(len(row.kills))
    print(table(rows))
    print(save(rows, seed))
    return 0 if all(row.is_same for row in rows) else 1


@contextmanager
def _opened_site(images: Path | None, limit: float) -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="sl-") as home, opened_ray(Path(home)) as session:
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        folder = Path(home)
        if images is None:
            images = folder / "images"
            write(images, {f"{n % 3}/{n:04}.jpg": jpeg(n, SIDE) for n in range(NUM_IMAGES)})
        bundle = tiny_bundle(folder / "models", classes=("a", "b", "c"), size=32)
        yield Site(images.absolute(), bundle, session, folder, limit)


def _killed(site: Site, name: str, options: argparse.Namespace, seed: int) -> Iterator[Row]:
    kind = KINDS[name]
    output = _new_folder(site, f"{name}-alone")
    timeline = run_alone(site, kind.command, output)
    expected = digest_of(output)
    num_left = options.points
    draw = random.Random(f"{seed}-{name}")
    for number in range(MOST_RUNS):
        count = min(options.per_run, num_left)
        moments = sorted(draw.uniform(0, timeline.end) for _ in range(count))
        output = _new_folder(site, f"{name}-{number}")
        try:
            kills = run_killed(site, kind, output, timeline, moments, draw)
        except (RuntimeError, TimeoutError) as error:  # the others are still to be seen
            yield Row(name, timeline, [], is_same=False, failure=str(error))
            kills = []
        else:
            yield Row(name, timeline, kills, digest_of(output) == expected)
        num_left -= len(kills)
        if not num_left:
            return
    failure = f"{num_left} kills came to nothing: the job was over before"
    yield Row(name, timeline, [], is_same=False, failure=failure)


def _new_folder(site: Site, name: str) -> Path:
    folder = site.folder / name
    folder.mkdir()
    return folder


if __name__ == "__main__":
    sys.exit(main())
