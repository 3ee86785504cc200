"""What the training loop meets: where it stands, where its batches come from, who watches it, and
the ways in which it ends early. Nothing in here does anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from jobs.data.streams import Batch
from jobs.train.history import EpochRecord
from models.errors import SightlineError

if TYPE_CHECKING:
    import torch

    from jobs.train.position import Tally


@dataclass(frozen=True)
class Place:
    """Where this process stands among the workers, and what it computes on."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this worker writes the checkpoints."""
        return self.rank == 0


class Batches(Protocol):
    """Where a worker's share of the images comes from.

    `start` counts images of the epoch's order that all workers together have taken already.
    """

    def num_train_batches(self, start: int = 0) -> int:
        """Return how many batches an epoch has from there on for this worker; the same for all."""
        ...

    def train(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the shuffled batches of one epoch, from there on."""
        ...

    def validation(self) -> Iterator[Batch]:
        """Yield this worker's validation images, each exactly once."""
        ...


@dataclass(frozen=True)
class Notice:
    """Somebody asks for a checkpoint at once: the machine, or the run, is about to end.

    With `ends` the run stops after it; without, it goes on until it is ended from outside.
    """

    reason: str
    ends: bool


@dataclass(frozen=True)
class Status:
    """How a run stands: over all workers, `loss`, speed and waiting over the last few steps."""

    epoch: int  # counted from 0
    done: int  # images over all epochs
    total: int  # 0 where it is not known
    loss: float  # NaN while features are computed
    images_per_second: float
    waiting_share: float  # of the time, spent waiting for data
    is_past: bool = False  # what is done was done before this run began

    def note(self) -> str:
        """Return what stands beside a bar."""
        loss = "" if math.isnan(self.loss) else f"loss {self.loss:.3f}, "
        return f"{loss}{self.images_per_second:,.0f}/s, waiting {self.waiting_share:.0%}"


class Watcher:
    """What wants to know how a run goes on. Whoever inherits writes what it wants to know."""

    def begin(self, tally: Tally, done: int, total: int) -> None:
        """Called once before the first step: the run stands at `tally`, `done` images of `total`
        over all workers and epochs are behind it.
        """
        return

    def step(self, num_images: int, loss: float, waited: float = 0.0) -> None:
        """Called after each step of this worker, which waited so many seconds for its images."""
        return

    def show(self, status: Status) -> None:
        """Called a few times a second with how the run stands as a whole."""
        return

    def epoch(self, record: EpochRecord) -> None:
        """Called after each epoch, on every worker, with the figures of all."""
        return

    def notice(self) -> Notice | None:
        """Return what is asked of the run, once; looked at after every step, and every batch of a
        validation.
        """
        return None

    def close(self) -> None:
        """Called at the end, however it came."""
        return


class NotFiniteError(SightlineError):
    """The loss became NaN or infinite."""

    code = "loss_not_finite"


class StoppedError(SightlineError):
    """The run was asked to stop, and left a checkpoint to go on from."""

    code = "stopped"
