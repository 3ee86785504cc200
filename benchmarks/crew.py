"""Processes that do the same work at the same time, to see what the machine can do at most.

A worker loads what it needs, says that it is ready, and then, for each line on its standard input,
works for that many seconds and answers with how many it did per second.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence

import psutil

from benchmarks.cpu import busy_seconds


class Crew:
    """The processes of one layout, loaded and waiting."""

    def __init__(
        self, name: str, commands: Sequence[Sequence[str]], environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.cpu_ms_per_image = 0.0  # of the latest run
        self.others_share = 0.0  # of the whole machine, used by other processes in the latest run
        self._workers = [
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for command in commands
        ]
        for worker in self._workers:
            self._read(worker)

    def run(self, seconds: float) -> float:
        """Run all processes at once and return images per second."""
        for worker in self._workers:
            assert worker.stdin is not None
            worker.stdin.write(f"{seconds}\n")
            worker.stdin.flush()
        started, before, busy = time.perf_counter(), self._cpu_seconds(), busy_seconds()
        speed = sum(float(json.loads(self._read(worker))) for worker in self._workers)
        elapsed, used = time.perf_counter() - started, self._cpu_seconds() - before
        self.cpu_ms_per_image = used * 1e3 / max(1.0, speed * seconds)
        whole = elapsed * (os.cpu_count() or 1)
        self.others_share = max(0.0, busy_seconds() - busy - used) / whole
        return speed

    def _cpu_seconds(self) -> float:
        return sum(sum(psutil.Process(worker.pid).cpu_times()[:2]) for worker in self._workers)

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.communicate()

    def _read(self, worker: subprocess.Popen[str]) -> str:
        assert worker.stdout is not None
        line = worker.stdout.readline()
        if not line:
            raise RuntimeError(f"a process of the layout {self.name} ended by itself")
        return line
