"""What a container may use of its machine, as the kernel's control groups say: `docker run --cpus=4
--memory=8g` shows a process all cores and all memory, and ends it for taking them.

Both versions of control groups are read (Linux, Documentation/admin-guide/cgroup-v2.rst and
cgroup-v1). Where there is none, nothing is limited.
"""

from __future__ import annotations

import math
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # version 1 writes a number of this size where there is no limit


def limited_cores(groups: Path = GROUPS) -> int | None:
    """Return how many cores' time may be used, rounded up, or None without a limit."""
    quota, _, period = _read(groups / "cpu.max").partition(" ")  # "400000 100000", "max 100000"
    if not quota:
        quota = _read(groups / "cpu" / "cpu.cfs_quota_us")  # -1 without a limit
        period = _read(groups / "cpu" / "cpu.cfs_period_us")
    if not (quota.isdecimal() and period.isdecimal() and int(quota) and int(period)):
        return None
    return math.ceil(int(quota) / int(period))


def free_memory(groups: Path = GROUPS) -> int | None:
    """Return the bytes that may still be used, or None without a limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        most, now = _read(groups / limit), _read(groups / used)
        if most.isdecimal() and now.isdecimal() and int(most) < UNLIMITED:
            return max(0, int(most) - int(now))
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
