"""`python -m tests.faults.training [--points 10]`: interrupt trainings at random points, and
compare each with the same training left alone.

The table goes to standard error as it grows, and once more to standard output with a line for
machines. The exit status is 1 if one ended differently, or not at all.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common import ending_by_exception
from cluster.environment import session_environment
from cluster.processes import end_marked
from jobs.console import bar, make_console
from tests.conftest import s3_environment, started_s3
from tests.faults.training.compare import Trace, compare, trace
from tests.faults.training.interruptions import Interruption
from tests.faults.training.kinds import KINDS, Kind, Plan, Site, train_alone
from tests.faults.training.nodes import Nodes
from tests.faults.training.runs import ROOT, STEPS, WORKERS, Photos
from tests.faults.training.table import HEAD, Row, save, table
from tests.outages import Outage

TOLERANCE = 1e-6


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.training", description=__doc__)
    parser.add_argument("--points", type=int, default=10, help="interruptions of each kind")
    parser.add_argument("--per-run", type=int, default=1, help="how many of them in one run")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=None, help="of the points; random unless given")
    parser.add_argument("--outage-seconds", type=float, default=60.0)
    parser.add_argument("--limit-seconds", type=int, default=300, help="for one start")
    parser.add_argument("--folder", type=Path, default=None, help="keep runs and Ray's logs there")
    given = parser.parse_args(arguments)
    seed = secrets.randbelow(10**6) if given.seed is None else given.seed
    console = make_console()
    rows: list[Row] = []
    with (
        _folder(given.folder) as folder,
        opened_site(folder, given.outage_seconds, guarded="memory" in given.kinds) as site,
        ending_by_exception(),  # behind Ray, whose own handler of SIGTERM aborts the process
    ):
        console.print(f"seed {seed}\n{HEAD}", highlight=False)
        with bar(console, "interruptions", len(given.kinds) * given.points) as advance:
            for row in _interrupted(site, given, seed):
                rows.append(row)
                console.print(str(row), highlight=False)
                advance(1)
    print(table(rows))
    print(save(rows, seed))
    return 0 if all(row.is_like_alone for row in rows) else 1


@contextmanager
def opened_site(folder: Path, outage_seconds: float, *, guarded: bool = False) -> Iterator[Site]:
    """Start an S3 server that can fail and a cluster that can lose nodes, with photos in both;
    `guarded`: whose Ray ends processes when memory runs out.
    """
    with started_s3() as server, Outage.before(server.endpoint) as outage:
        bucket = server.make_bucket("faults")
        mark = secrets.token_hex(8)
        of_session = session_environment("", mark).items()
        os.environ |= {
            # without the token, which Ray reads once, when it is imported
            **{name: value for name, value in of_session if "AUTH" not in name},
            **s3_environment(outage.endpoint),
            "RAY_worker_niceness": "0",  # else whoever works beside this leaves them no time
            "RAY_TMPDIR": str(folder),
            "RAY_memory_monitor_refresh_ms": "0",
            # Ray's workers import the packages under test from here, installed or not.
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        os.environ.pop("RAY_ADDRESS", None)
        try:
            with Nodes.opened(count=2, cpus=2, quiet=True, guarded=guarded) as nodes:
                yield Site(
                    nodes=nodes,
                    local=Photos.write(str(folder)),
                    bucket=Photos.write(bucket),
                    samples=folder / "samples-of-bucket",
                    outage=outage,
                    outage_seconds=outage_seconds,
                )
        finally:
            end_marked(mark)


def _interrupted(site: Site, options: argparse.Namespace, seed: int) -> Iterator[Row]:
    alone: dict[int, Trace] = {}  # by epochs
    for name in options.kinds:
        kind = KINDS[name]
        if kind.epochs not in alone:
            run = f"alone-{kind.epochs}"
            of_folder = Kind(kind.interrupt, kind.epochs)
            history = train_alone(site, of_folder, run)
            alone[kind.epochs] = trace(site.config(of_folder, run), run, history)
        for first in range(0, options.points, options.per_run):
            plan = _plan(name, first, min(options.per_run, options.points - first), seed)
            yield from _rows(site, name, plan, alone[kind.epochs], options.limit_seconds)


def _plan(name: str, first: int, count: int, seed: int) -> Plan:
    draw = random.Random(f"{seed}-{name}-{first}")
    steps = draw.sample(range(1, KINDS[name].epochs_drawn * STEPS * WORKERS), count)
    return Plan(f"{name}-{first}", sorted(steps), [draw.randrange(WORKERS) for _ in steps])


def _rows(site: Site, name: str, plan: Plan, alone: Trace, limit: int) -> Iterator[Row]:
    """Interrupt one run; what is raised, or takes too long, is its failure."""
    kind = KINDS[name]
    try:
        with _limited(limit * (len(plan.steps) + 1)):
            history, seen = kind.interrupt(site, kind, plan)
        found = compare(trace(site.config(kind, plan.run), plan.run, history), alone)
    except Exception as error:  # the others are still to be seen
        failure = f"{plan}: {type(error).__name__}: {error}"
        yield from (
            Row(name, plan.run, Interruption(0), None, TOLERANCE, failure) for _ in plan.steps
        )
        return
    yield from (Row(name, plan.run, each, found, TOLERANCE) for each in seen)


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    """Raise `TimeoutError` in this thread after so many seconds."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"not over after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _folder(wanted: Path | None) -> Iterator[Path]:
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        yield wanted.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="sl-") as folder:
        yield Path(folder)


if __name__ == "__main__":
    sys.exit(main())
