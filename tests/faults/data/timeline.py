"""How a job gets on, and moments in its time that a job which goes on can find again."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

LOOK_SECONDS = 0.005


@dataclass
class Timeline:
    """When a job that was left alone had how many parts, in seconds since its start."""

    parts: list[float] = field(default_factory=list)
    end: float = 0.0

    @classmethod
    def watched(cls, num_parts: Callable[[], int], is_over: Callable[[], bool]) -> Timeline:
        """Look at a job that has just been started until it is over."""
        found, started = cls(), time.monotonic()
        while not is_over():
            now = time.monotonic() - started
            found.parts += [now] * (num_parts() - len(found.parts))
            time.sleep(LOOK_SECONDS)
        found.end = time.monotonic() - started
        return found

    def locate(self, moment: float) -> tuple[int, float]:
        """Return how many parts there were at a moment, and the seconds since the last of them."""
        count = bisect_right(self.parts, moment)
        return count, moment - (self.parts[count - 1] if count else 0.0)

    def wait(
        self, moment: float, num_parts: Callable[[], int], is_over: Callable[[], bool]
    ) -> bool:
        """Wait until a job that was just started, or goes on, is where the other one was at a
        moment; say whether it still runs then.
        """
        count, rest = self.locate(moment)
        while num_parts() < count and not is_over():
            time.sleep(LOOK_SECONDS)
        until = time.monotonic() + rest
        while time.monotonic() < until and not is_over():
            time.sleep(LOOK_SECONDS)
        return not is_over()
