"""Uses up the memory of this machine, so that a Ray that guards it ends processes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import psutil

ROOM = 6 << 30  # for the run itself, and others on the machine
KEPT = 1 << 30  # of the machine's memory, for everybody
PART = 256 << 20
SECONDS_BETWEEN = 0.1


def has_room() -> bool:
    """Say whether so much memory is free that it can be used up."""
    return psutil.virtual_memory().available >= ROOM + 2 * KEPT


def guarding() -> dict[str, str]:
    """Return the environment of a Ray that ends a process when `ROOM` of what is free now is
    used.
    """
    memory = psutil.virtual_memory()
    share = (memory.total - memory.available + ROOM) / memory.total
    return {
        "RAY_memory_usage_threshold": f"{share:.4f}",
        "RAY_memory_monitor_refresh_ms": "100",
    }


def starve(is_over: Callable[[float], object]) -> None:
    """Take all memory but `KEPT`, and give it back when that is over, for which `is_over` waits so
    many seconds.
    """
    taken = []
    while not is_over(SECONDS_BETWEEN):
        if psutil.virtual_memory().available > KEPT + PART:
            taken.append(np.ones(PART // 8))
