"""How long the parts of one piece of work took.

Who does a part says which one it is (`part`); nothing is counted unless somebody further up
measures (`measuring`). A part inside another is taken off the outer one, so all of them together
are never more than the whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Stopwatch:
    """Seconds by part, in the order in which the parts began. Of one thread at a time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = self._since = time.perf_counter()
        self._open: list[str] = []

    @property
    def total(self) -> float:
        """Seconds since the watch was started, whether a part or none."""
        return time.perf_counter() - self._began

    def enter(self, name: str) -> None:
        """Begin a part; the one around it waits."""
        self._charge()
        self.seconds.setdefault(name, 0.0)
        self._open.append(name)

    def leave(self) -> None:
        """End the part that began last."""
        self._charge()
        self._open.pop()

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


_running: ContextVar[Stopwatch | None] = ContextVar("stopwatch", default=None)


@contextmanager
def measuring() -> Iterator[Stopwatch]:
    """Count the parts of what is done in the context, also on threads that run in a copy of it."""
    watch = Stopwatch()
    token = _running.set(watch)
    try:
        yield watch
    finally:
        _running.reset(token)


@contextmanager
def part(name: str) -> Iterator[None]:
    """Say that what is done in the context is that part."""
    watch = _running.get()
    if watch is None:
        yield
        return
    watch.enter(name)
    try:
        yield
    finally:
        watch.leave()
