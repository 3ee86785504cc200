"""Look at every process of a session now and then: memory, descriptors and threads of each, and
what Ray's logs and shared memory take.

Memory is what a process has written itself (anonymous pages). Pages of files, as of a library, are
left out: how they are counted changes when somebody else starts the same program, and half of the
unique memory of HAProxy vanished whenever a second one ran.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.cpu import role_of
from benchmarks.smaps import MIB, memory_of
from cluster.processes import marked_processes

REPLICA = "ServeReplica:"  # in the title of a process, before application and deployment
LOGS, SHARED = "Ray's logs", "shared memory"
SHARED_FOLDER = Path("/dev/shm")


@dataclass(frozen=True)
class Sample:
    """One process at one moment, or one place with `pid` 0 and the number of its files."""

    seconds: float  # since the start
    role: str
    pid: int
    memory_mib: float  # anonymous; of a place, what it takes on the disk
    pss_mib: float
    rss_mib: float
    descriptors: int
    threads: int


class Watcher:
    """Takes samples and keeps them in a file, so that a run that is killed loses none."""

    def __init__(self, mark: str, logs: Path, path: Path) -> None:
        self._mark, self._logs, self._path = mark, logs, path
        self._started = time.monotonic()
        self.samples: list[Sample] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")

    def sample(self) -> None:
        """Look at everything now."""
        seconds = round(time.monotonic() - self._started, 1)
        taken = [*_processes(self._mark, seconds), *_places(self._logs, seconds)]
        self.samples += taken
        with self._path.open("a") as file:
            for each in taken:
                file.write(json.dumps(asdict(each)) + "\n")


def read_samples(path: Path) -> list[Sample]:
    """Return what a run has kept so far."""
    return [Sample(**json.loads(line)) for line in path.read_text().splitlines()]


def role_in(command: str) -> str:
    """Return what a process is, of a replica also which application it serves."""
    _, found, rest = command.partition(REPLICA)
    return f"replicas of {rest.split(':')[0]}" if found else role_of(command)


def _processes(mark: str, seconds: float) -> Iterator[Sample]:
    for process in marked_processes(mark):
        try:
            memory = memory_of(process.pid)
            yield Sample(
                seconds,
                role_in(" ".join(process.cmdline())),
                process.pid,
                memory.anonymous_mib,
                memory.pss_mib,
                memory.rss_mib,
                process.num_fds(),
                process.num_threads(),
            )
        except (psutil.Error, OSError):  # it ended meanwhile
            continue


def _places(logs: Path, seconds: float) -> Iterator[Sample]:
    files = [path for path in logs.rglob("*") if path.is_file() and not path.is_symlink()]
    taken = sum(_size(path) for path in files) / MIB
    yield Sample(seconds, LOGS, 0, taken, 0, 0, len(files), 0)
    # Of the whole machine: Ray's own file there has no name any more.
    state = os.statvfs(SHARED_FOLDER)
    shared = (state.f_blocks - state.f_bfree) * state.f_frsize / MIB
    yield Sample(seconds, SHARED, 0, shared, 0, 0, len(list(SHARED_FOLDER.iterdir())), 0)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # rotated away meanwhile
        return 0
