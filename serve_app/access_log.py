"""The access log: one JSON object per line, of a sample of requests and of those that failed.

Of answered requests a sample is written; server errors always; refusals (4xx) at most
`MAX_REFUSALS` a second, the next line telling how many were left out, so that a client gone mad
cannot fill the disk. Lines are kept in memory and written once a second by a thread of their own.

A line never holds anything of what was sent: no body, query, file name or key, and as its path the
pattern of the route. Nor does it hold the client's address, which is personal data in many places
and, behind HAProxy, that of the proxy.
"""

from __future__ import annotations

import logging
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import orjson

from serve_app.logs import OURS

logger = logging.getLogger(OURS)

MAX_REFUSALS = 10  # a second
MAX_WAITING = 10_000  # lines; what comes beyond while the disk stands still is dropped
SECONDS_BETWEEN = 1.0
MAX_BYTES, NUM_BACKUPS = 100 << 20, 5  # where nothing else is known of the folder
REFUSED, FAILED = 400, 500

Write = Callable[[str], None]  # takes whole lines


class AccessLog:
    """Chooses, keeps and writes lines. Entries are added by one thread, the event loop's."""

    def __init__(self, write: Write, sample: float, about: Mapping[str, object]) -> None:
        """`sample` is a share, 0 to 1; `about` stands in every line."""
        self._write, self._sample, self._about = write, sample, dict(about)
        self._waiting: deque[dict[str, Any]] = deque(maxlen=MAX_WAITING)
        self._second, self._num_refusals, self._num_skipped = 0, 0, 0
        self._problem = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def wants(self, status: int) -> bool:
        """Say whether a request that was answered with this status is to be written."""
        if status < REFUSED:
            return random.random() < self._sample
        if status >= FAILED:
            return True
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._num_refusals = second, 0
        self._num_refusals += 1
        if self._num_refusals > MAX_REFUSALS:
            self._num_skipped += 1
            return False
        return True

    def add(self, entry: dict[str, Any]) -> None:
        """Keep an entry until it is written. It gets its time and what stands in every line."""
        entry["time"] = time.time()
        if self._num_skipped or len(self._waiting) == MAX_WAITING:
            dropped = len(self._waiting) == MAX_WAITING
            entry["skipped"] = self._num_skipped + dropped
            self._num_skipped = 0
        self._waiting.append(entry)

    def close(self) -> None:
        """Write what is left and end the thread."""
        self._ended.set()
        self._thread.join(SECONDS_BETWEEN)

    def _run(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        lines = [self._line(self._waiting.popleft()) for _ in range(len(self._waiting))]
        if not lines:
            return
        try:
            self._write("\n".join(lines))
            self._problem = ""
        # a full disk must not end the thread, nor fill the other log
        except Exception as error:
            if str(error) != self._problem:
                logger.error("the access log cannot be written: %r", error)
            self._problem = str(error)

    def _line(self, entry: dict[str, Any]) -> str:
        moment = datetime.fromtimestamp(entry.pop("time"), UTC)
        written = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return orjson.dumps({"time": written, **entry, **self._about}).decode()


def to_stderr(lines: str) -> None:
    """Write to the standard error that this process was started with; Serve puts a logger in the
    place of `sys.stderr`.
    """
    stream = sys.__stderr__ or sys.stderr
    print(lines, file=stream, flush=True)


def to_file(path: Path, max_bytes: int = MAX_BYTES, num_backups: int = NUM_BACKUPS) -> Write:
    """Return what appends to a file that is rotated. Raises `OSError` where it cannot be opened."""
    handler = RotatingFileHandler(path, maxBytes=max_bytes, backupCount=num_backups)
    handler.handleError = _raise  # type: ignore[method-assign]

    def write(lines: str) -> None:
        handler.emit(logging.LogRecord("access", logging.INFO, "", 0, lines, None, None))

    return write


def beside(log: logging.Logger, name: str) -> Write:
    """Return what appends to a file of that name in the folder where a logger writes, rotated as
    its file is; to standard error where it writes to no file.
    """
    for handler in log.handlers:
        target = getattr(handler, "target", handler)  # Serve writes through a buffer
        if isinstance(target, RotatingFileHandler):
            path = Path(target.baseFilename).with_name(name)
            return to_file(path, target.maxBytes, target.backupCount)
    return to_stderr


def _raise(record: logging.LogRecord) -> None:
    error = sys.exc_info()[1]
    assert error is not None
    raise error
