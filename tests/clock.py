"""A clock that stands in the place of `time` where a test looks at what a module makes of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Clock:
    """It goes on only while somebody sleeps, or a test says so."""

    now: float = 100.0

    def monotonic(self) -> float:
        """Return its seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let them pass."""
        self.now += seconds
