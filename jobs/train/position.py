"""Where a run stands within an epoch, and what the epoch has summed up so far: with it a run goes
on in mid-epoch and ends like one that was not interrupted.

The position is counted in images of the epoch's order, not in steps, so that another number of
workers can go on from it.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from jobs.train.history import EpochRecord


@dataclass
class Tally:
    """How far an epoch is. Sums are those of the first worker, where several train."""

    epoch: int  # counted from 0; the one to go on with
    step: int = 0  # that are done in it
    position: int = 0  # images of the epoch's order that all workers together have taken
    world: int = 1  # workers that took them last
    loss: float = 0.0  # sum over the images, of the mean of their step
    num_images: int = 0  # seen by all workers
    waited: float = 0.0  # seconds
    seconds: float = 0.0

    def add(self, loss: float, num_images: int, batch_size: int, waited: float) -> None:
        """Count one step: `num_images` of this worker, of the `batch_size` that it should have
        had; fewer where some could not be read any more.
        """
        self.step += 1
        self.position += batch_size * self.world
        self.loss += loss * batch_size * self.world
        self.num_images += num_images * self.world
        self.waited += waited

    def record(self, validation: dict[str, float] | None) -> EpochRecord:
        """Return the figures of the epoch, now that it is done."""
        seconds = max(self.seconds, 1e-9)
        return EpochRecord(
            self.epoch,
            self.loss / max(1, self.position),
            validation,
            images_per_second=self.num_images / seconds,
            waiting_share=self.waited / seconds,
        )

    def state(self) -> dict[str, Any]:
        """Return it as what a checkpoint can hold."""
        return asdict(self)


@dataclass
class Cadence:
    """Says when the next checkpoint in mid-epoch is due: after so many steps, or so many seconds,
    whatever comes first. None: never for that reason.
    """

    every_steps: int | None
    every_seconds: float | None

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Count anew, from now on."""
        self._steps, self._since = 0, time.monotonic()

    def step(self) -> bool:
        """Count a step; say whether one is due, and go on saying so until `restart`."""
        self._steps += 1
        return self.is_due

    @property
    def is_due(self) -> bool:
        """Whether one is due now; never of no step."""
        if not self._steps:
            return False
        is_enough = self.every_steps is not None and self._steps >= self.every_steps
        is_late = self.every_seconds is not None and (
            time.monotonic() - self._since >= self.every_seconds
        )
        return is_enough or is_late
