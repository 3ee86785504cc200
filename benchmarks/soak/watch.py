"""Memory, descriptors and threads of a session's processes over time, and whether they grow."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.cpu import role_of
from cluster.processes import marked_processes

MIB = 1 << 20
WARM_UP_SHARE = 0.25  # of the run, in which caches fill
# Growth per hour that is called growth: of memory as a share and in MiB, whichever is more, and in
# descriptors.
MEMORY_SHARE, MEMORY_MIB, DESCRIPTORS = 0.05, 15.0, 10.0
# What has to be flat. What else runs is Ray's own, and only reported.
OURS = ("replicas", "HAProxy")


@dataclass(frozen=True)
class Sample:
    """All processes of one role at one moment."""

    seconds: float  # since the start
    role: str
    processes: int
    memory_mib: float  # unique to them
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Growth:
    """How a role changed in an hour, once it was warm."""

    role: str
    memory_mib: float  # median
    memory_mib_per_hour: float
    descriptors: float
    descriptors_per_hour: float

    @property
    def is_flat(self) -> bool:
        """Whether it is within what caches and noise explain."""
        most = max(MEMORY_MIB, MEMORY_SHARE * self.memory_mib)
        return self.memory_mib_per_hour <= most and self.descriptors_per_hour <= DESCRIPTORS


class Watcher:
    """Takes samples and keeps them in a file, so that a run that is killed loses none."""

    def __init__(self, mark: str, path: Path) -> None:
        self._mark, self._path = mark, path
        self._started = time.monotonic()
        self.samples: list[Sample] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")

    def sample(self) -> None:
        """Look at every process of the session now."""
        seconds = time.monotonic() - self._started
        sums: dict[str, list[float]] = {}
        for process in marked_processes(self._mark):
            try:
                memory = process.memory_full_info().uss / MIB
                figures = (1, memory, process.num_fds(), process.num_threads())
                role = role_of(" ".join(process.cmdline()))
            except psutil.Error:  # it ended meanwhile
                continue
            of_role = sums.setdefault(role, [0, 0, 0, 0])
            for position, figure in enumerate(figures):
                of_role[position] += figure
        taken = [
            Sample(round(seconds, 1), role, int(count), memory, int(files), int(threads))
            for role, (count, memory, files, threads) in sorted(sums.items())
        ]
        self.samples += taken
        with self._path.open("a") as file:
            for each in taken:
                file.write(json.dumps(asdict(each)) + "\n")


def growths(samples: Sequence[Sample]) -> list[Growth]:
    """Return how each role changed, the largest memory first."""
    end = max((each.seconds for each in samples), default=0.0)
    found = []
    for role in {each.role for each in samples}:
        warm = [s for s in samples if s.role == role and s.seconds >= WARM_UP_SHARE * end]
        if len(warm) < 2:
            continue
        times = [each.seconds / 3600 for each in warm]
        memory = [each.memory_mib for each in warm]
        files = [float(each.descriptors) for each in warm]
        found.append(
            Growth(
                role,
                statistics.median(memory),
                slope(times, memory),
                statistics.median(files),
                slope(times, files),
            )
        )
    return sorted(found, key=lambda growth: -growth.memory_mib)


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Return the Theil-Sen estimate: the median slope of all pairs, which single spikes do not
    move (Sen, 1968). Pairs are thinned beyond 300 values.
    """
    step = max(1, len(times) // 300)
    points = list(zip(times[::step], values[::step], strict=True))
    slopes = [
        (b - a) / (t - s) for at, (s, a) in enumerate(points) for t, b in points[at + 1 :] if t > s
    ]
    return statistics.median(slopes) if slopes else 0.0
