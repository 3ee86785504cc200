"""`python -m benchmarks.ingest.reader REQUEST`: one library reads one set once, in this process.

The request is a file of JSON, and so is the answer. Libraries are loaded, and Ray is up, before the
clock starts.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.cpu import busy_seconds
from benchmarks.ingest.consume import Batches, Window, consume


@dataclass(frozen=True)
class Request:
    """What to read, with what, how."""

    module: str  # below `loaders`
    way: str
    uri: str
    window: Window
    workers: int  # processes or logical CPUs, as the library calls it
    batch_size: int = 64
    seed: int = 0
    state: str = "."  # a folder for what a library keeps between runs
    options: dict[str, Any] = field(default_factory=dict)

    def dump(self) -> str:
        """Return the request as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Request:
        """Read a request from JSON."""
        found = json.loads(text)
        return cls(**{**found, "window": Window(**found["window"])})


# Enters with everything loaded; calling what it gives begins the pass.
Loader = Callable[[Request], AbstractContextManager[Callable[[], Batches]]]


def read(request: Request, answer: Path) -> None:
    """Read a set as the request says and write down what was found, before anything is ended: a
    Ray that still reads ahead for a dropped iterator may end this process when it is shut down.
    """
    loader: Loader = importlib.import_module(f"benchmarks.ingest.loaders.{request.module}").loading
    started = time.perf_counter()
    with loader(request) as open_batches:
        ready_s = time.perf_counter() - started
        meter = _Meter()
        found = consume(open_batches, request.window, meter.mark)
        figures = {
            "per_second": (
                found.whole_per_second
                if request.options.get("reads_far_ahead")
                else found.per_second
            ),
            "window_per_second": found.per_second,
            "num_images": found.num_images,
            "seconds": found.seconds,
            "first_batch_s": found.first_batch_s,
            "ready_s": ready_s,
            "cpu_ms": meter.own_seconds * 1e3 / found.num_images,
            "others_share": max(0.0, meter.busy_seconds - meter.own_seconds)
            / (found.seconds * (os.cpu_count() or 1)),
            "keys": [_plain(keys) for keys in found.keys],
        }
        answer.write_text(json.dumps(figures))


class _Meter:
    """CPU seconds within the window: of this process and all that it started, and of everybody."""

    def __init__(self) -> None:
        self.own_seconds = self.busy_seconds = 0.0

    def mark(self, is_start: bool) -> None:
        sign = -1 if is_start else 1
        self.own_seconds += sign * _own_seconds()
        self.busy_seconds += sign * busy_seconds()


def _own_seconds() -> float:
    this = psutil.Process()
    total = 0.0
    for process in (this, *this.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.Error:  # it ended meanwhile
            continue
        total += times.user + times.system
    return total


def _plain(keys: Any) -> list[Any]:
    listed: list[Any] = keys.tolist() if hasattr(keys, "tolist") else list(keys)
    return listed


def main() -> int:
    """Answer the request in the file named first, in the one named second."""
    request, answer = map(Path, sys.argv[1:3])
    read(Request.load(request.read_text()), answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
