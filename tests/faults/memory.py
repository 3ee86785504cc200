"""A limit of memory for one running process, as a container has it: beyond it the kernel kills."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup")
SECONDS_TO_EMPTY = 10.0


@contextmanager
def memory_limit(pid: int, num_bytes: int) -> Iterator[Callable[[], int]]:
    """Let a process take so many bytes more than it has; give what says how many processes the
    kernel has killed for it. Skips the test where nobody lets us.
    """
    is_first_version = (ROOT / "memory").is_dir()
    group = (ROOT / "memory" if is_first_version else ROOT) / f"sightline-faults-{pid}"
    limit = "memory.limit_in_bytes" if is_first_version else "memory.max"
    try:
        group.mkdir()
        (group / limit).write_text(str(num_bytes))
        (group / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no memory limit can be set on this machine: {error}")
    events = group / ("memory.oom_control" if is_first_version else "memory.events")

    def num_kills() -> int:
        counts = dict(line.split() for line in events.read_text().splitlines())
        return int(counts["oom_kill"])

    try:
        yield num_kills
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_EMPTY
    while time.monotonic() < deadline:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (group.parent / "cgroup.procs").write_text(pid)
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.2)
