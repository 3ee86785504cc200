"""What the log files of a session say went wrong: errors, and tracebacks of whoever has no log.

A server may answer everything rightly and still complain, of a task that nobody waited for as an
example. Serve writes to a file in blocks, but errors at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

# Of Serve's own files, and of whatever processes print.
PATTERNS = ("serve/*.log", "worker-*.err", "worker-*.out")
ACCESS = "access_"  # the access log tells of requests, which are counted where they are sent
COMPLAINT = re.compile(r"^(ERROR|CRITICAL)\b|^Traceback \(most recent call last\)|Fatal Python")
MAX_EXAMPLES = 5


@dataclass
class Complaints:
    """How many there are in the files of one session, and the first ones."""

    num_lines: int = 0
    examples: list[str] = field(default_factory=list)


def find_complaints(logs: Path) -> Complaints:
    """Read the log files in Ray's folder."""
    found = Complaints()
    files = sorted(path for pattern in PATTERNS for path in logs.glob(pattern))
    for path in files:
        if path.name.startswith(ACCESS):
            continue
        lines = path.read_text(errors="replace").splitlines()
        for number, line in enumerate(lines):
            if COMPLAINT.search(line):
                found.num_lines += 1
                if len(found.examples) < MAX_EXAMPLES:
                    words = " | ".join(lines[number : number + 3])
                    found.examples.append(f"{path.name}: {words[:300]}")
    return found
