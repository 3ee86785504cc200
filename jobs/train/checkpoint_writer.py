"""Writes checkpoints beside the training: a thread takes a copy of the state to the store, while
the next steps run.

A bucket that does not answer is waited for there (the store is a patient one), and the training
goes on. At most one write is under way. While it is, checkpoints in mid-epoch are left out, and
what an epoch's end leaves waits: of the best epoch and of the last one each.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from types import TracebackType

from jobs.train.checkpoints import Checkpoints, State

logger = logging.getLogger(__name__)

# What a run that fails for another reason still gives its last checkpoint.
SECONDS_AFTER_AN_ERROR = 60.0


@dataclass(frozen=True)
class _Save:
    state: State
    next_epoch: int
    next_step: int
    score: float | None
    is_best: bool


class CheckpointWriter:
    """Entered once around a training. What a write raised is raised by `check`, `flush` and at the
    end.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self._changed = threading.Condition()
        self._waiting: list[_Save] = []
        self._is_writing = False
        self._is_closed = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is being written, or waits."""
        return self._is_writing or bool(self._waiting)

    def save(
        self,
        state: State,
        *,
        next_epoch: int,
        next_step: int = 0,
        score: float | None = None,
        is_best: bool = False,
    ) -> None:
        """Have a state written, which nobody may change any more. Raises what a write before
        raised.
        """
        self.check()
        wanted = _Save(state, next_epoch, next_step, score, is_best)
        with self._changed:
            # The best of those that wait must not be lost; a better one takes its place.
            kept = [] if is_best else [save for save in self._waiting if save.is_best]
            self._waiting = [*kept, wanted]
            self._changed.notify_all()

    def check(self) -> None:
        """Raise what an earlier write raised."""
        if self._error is not None:
            raise self._error

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything is written, at most `timeout` seconds; raise what went wrong."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self.is_busy, timeout):
                logger.warning(
                    "the last checkpoint is not written after %g s and is given up", timeout
                )
        self.check()

    def __enter__(self) -> CheckpointWriter:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.flush(None if error is None else SECONDS_AFTER_AN_ERROR)
        except Exception as own:  # must not hide what ended the training
            if error is None:
                raise
            if own is not error:  # which is the one to tell
                logger.warning("the last checkpoint could not be written: %s", own)
        finally:
            with self._changed:
                self._is_closed = True
                self._changed.notify_all()

    def _work(self) -> None:
        while (save := self._take()) is not None:
            try:
                self.checkpoints.save(
                    save.state,
                    next_epoch=save.next_epoch,
                    next_step=save.next_step,
                    score=save.score,
                    is_best=save.is_best,
                )
            except Exception as error:  # told at the next step, in the thread that trains
                self._error = error
            with self._changed:
                if self._error is not None:
                    self._waiting.clear()
                self._is_writing = False
                self._changed.notify_all()

    def _take(self) -> _Save | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if not self._waiting:
                return None
            self._is_writing = True
            return self._waiting.pop(0)
