"""The most memory that a process has had."""

from __future__ import annotations

import re
from pathlib import Path


def peak(pid: int | str = "self") -> float:
    """Return it in MiB, 0 of a process that has ended. `getrusage` would tell that of the process
    that started it, if it had more.
    """
    found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0
