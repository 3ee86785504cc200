"""What is killed: a whole command, which is then given again, or one of Ray's processes that read
or score for it.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Protocol

from cluster.session import Session
from tests.faults.data.timeline import LOOK_SECONDS, Timeline
from tests.raylet import READER, SCORER, kill_one

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Site:
    """Images, a bundle to score them with, a Ray, and a folder to write to. A start of a command
    may take `limit` seconds.
    """

    images: Path
    bundle: str
    session: Session
    folder: Path
    limit: float


class Command(Protocol):
    """A command that writes below a folder, piece by piece."""

    def line(self, site: Site, output: Path, *, again: bool) -> list[str]:
        """Return its arguments, as they are given first or after a kill."""
        ...

    def num_parts(self, output: Path) -> int:
        """Return how many pieces are there before it is over."""
        ...


class Packing:
    """`jobs.data.pack` with the smallest shards."""

    def line(self, site: Site, output: Path, *, again: bool) -> list[str]:
        return ["-m", "jobs.data.pack", str(site.images), str(output), "--shard-mib", "1"]

    def num_parts(self, output: Path) -> int:
        return len(list(output.glob("*.parquet")))


class Scoring:
    """`jobs.score` with parts so small that there are many."""

    PROGRAM = (
        "import jobs.score.parts, sys; jobs.score.parts.ROWS_PER_PART = 16; "
        "from jobs.score.__main__ import main; sys.exit(main())"
    )

    def line(self, site: Site, output: Path, *, again: bool) -> list[str]:
        table = output / "scores.parquet"
        resume = ["--resume"] if again else []
        return ["-c", self.PROGRAM, str(site.images), str(table), "--bundle", site.bundle, *resume]

    def num_parts(self, output: Path) -> int:
        return len(list(output.glob("*/parts/*.parquet")))


class Reading:
    """An epoch of shuffled batches, as training has them."""

    def line(self, site: Site, output: Path, *, again: bool) -> list[str]:
        return ["-m", "tests.faults.data.reading", str(site.images), str(output)]

    def num_parts(self, output: Path) -> int:
        return sum(file.read_bytes().count(b"\n") for file in output.glob("batches.txt"))


@dataclass(frozen=True)
class Kind:
    """A command, and what of it is killed: itself, or a process that Ray calls `worker`."""

    command: Command
    worker: str | None = None


KINDS = {
    "pack": Kind(Packing()),
    "score": Kind(Scoring()),
    "pack-worker": Kind(Packing(), READER),
    "score-worker": Kind(Scoring(), SCORER),
    "read-worker": Kind(Reading(), READER),
}


@dataclass(frozen=True)
class Kill:
    """One kill: how long the process had run, and how many parts were there."""

    seconds: float
    parts: int


def run_alone(site: Site, command: Command, output: Path) -> Timeline:
    """Let a command run undisturbed. Raises `RuntimeError` where it fails."""
    with _started(command.line(site, output, again=False), site.limit) as job:
        timeline = Timeline.watched(partial(command.num_parts, output), job.is_over)
        job.check_ended()
    return timeline


def run_killed(
    site: Site,
    kind: Kind,
    output: Path,
    timeline: Timeline,
    moments: Sequence[float],
    draw: random.Random,
) -> list[Kill]:
    """Kill at these moments of a command's time, in order, and let it end; return the kills that
    came before it was over.

    Raises `RuntimeError` where it fails, and `TimeoutError`.
    """
    kills: list[Kill] = []
    left = list(moments)
    while True:
        with _started(kind.command.line(site, output, again=bool(kills)), site.limit) as job:
            num_parts = partial(kind.command.num_parts, output)
            while left and timeline.wait(left.pop(0), num_parts, job.is_over):
                seen = Kill(job.seconds, num_parts())
                if kind.worker is None:
                    job.kill()
                    kills.append(seen)
                    break
                while not kill_one(site.session, kind.worker, draw) and not job.is_over():
                    time.sleep(LOOK_SECONDS)
                if not job.is_over():
                    kills.append(seen)
            else:
                job.check_ended()
                return kills


def digest_of(output: Path) -> str:
    """Return one digest of the names and bytes of all files below a folder."""
    found = hashlib.sha256()
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        found.update(f"{path.relative_to(output)}\0".encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


class _Job:
    """A running command. What it says goes to a file, so that it never waits for a reader."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes], limit: float) -> None:
        self._process, self._log, self._limit = process, log, limit
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.monotonic() - self._started

    def is_over(self) -> bool:
        """Say whether it has ended, in whatever way. Raises `TimeoutError` beyond the limit."""
        if self.seconds > self._limit:
            raise TimeoutError(f"not over after {self._limit:g} s, the last words: {self._words()}")
        return self._process.poll() is not None

    def kill(self) -> None:
        """End it without a word."""
        self._process.kill()
        self._process.wait()

    def check_ended(self) -> None:
        """Wait until it is over. Raises `RuntimeError` where it failed."""
        while not self.is_over():
            time.sleep(LOOK_SECONDS)
        if self._process.returncode:
            raise RuntimeError(f"status {self._process.returncode}: {self._words()}")

    def _words(self) -> str:
        self._log.seek(0)
        return self._log.read()[-2000:].decode(errors="replace")


@contextmanager
def _started(arguments: Sequence[str], limit: float) -> Iterator[_Job]:
    """Start Python, and end it with the context."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
        )
        job = _Job(process, log, limit)
        try:
            yield job
        finally:
            job.kill()
