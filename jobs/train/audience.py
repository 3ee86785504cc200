"""Everybody who watches one worker, as one watcher; it measures the pace and shows it a few times a
second.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.train.borders import Notice, Place, Status, Watcher
from jobs.train.history import EpochRecord
from jobs.train.position import Tally

SECONDS_BETWEEN = 0.25
STEPS_LOOKED_AT = 32


@dataclass(frozen=True)
class _Seen:
    time: float
    num_images: int
    loss: float
    waited: float


class Audience(Watcher):
    """Passes on what it is told, in order."""

    def __init__(self, watchers: Sequence[Watcher], place: Place) -> None:
        self._watchers = watchers
        self._world = place.world
        self._epoch, self._done, self._total = 0, 0, 0
        self._seen = deque([_Seen(time.monotonic(), 0, float("nan"), 0.0)], STEPS_LOOKED_AT)
        self._shown = float("-inf")

    def begin(self, tally: Tally, done: int, total: int) -> None:
        """Note where the run begins."""
        self._epoch, self._done, self._total = tally.epoch, done, total
        self._seen.append(_Seen(time.monotonic(), 0, float("nan"), 0.0))
        for watcher in self._watchers:
            watcher.begin(tally, done, total)
            watcher.show(Status(tally.epoch, done, total, float("nan"), 0.0, 0.0, is_past=True))

    def step(self, num_images: int, loss: float, waited: float = 0.0) -> None:
        """Count a step, and show how the run stands if that was some time ago."""
        now = time.monotonic()
        self._done += num_images * self._world
        self._seen.append(_Seen(now, num_images * self._world, loss, waited))
        for watcher in self._watchers:
            watcher.step(num_images, loss, waited)
        if now - self._shown >= SECONDS_BETWEEN:
            self._show(now)

    def epoch(self, record: EpochRecord) -> None:
        """Show the last steps of the epoch, and its figures."""
        self._show(time.monotonic())
        self._epoch = record.epoch + 1
        for watcher in self._watchers:
            watcher.epoch(record)

    def notice(self) -> Notice | None:
        """Return the first that anybody has."""
        for watcher in self._watchers:
            if (notice := watcher.notice()) is not None:
                return notice
        return None

    def close(self) -> None:
        """Show the end, and close all, in order."""
        if self._done:
            self._show(time.monotonic())
        for watcher in self._watchers:
            watcher.close()

    def _show(self, now: float) -> None:
        self._shown = now
        status = self.status()
        for watcher in self._watchers:
            watcher.show(status)

    def status(self) -> Status:
        """Return how the run stands, by its last few steps."""
        first, *steps = self._seen
        seconds = max(self._seen[-1].time - first.time, 1e-9)
        losses = [step.loss for step in steps if step.loss == step.loss]
        return Status(
            self._epoch,
            self._done,
            self._total,
            sum(losses) / len(losses) if losses else float("nan"),
            sum(step.num_images for step in steps) / seconds,
            min(1.0, sum(step.waited for step in steps) / seconds),
        )
