"""Says when a checkpoint is written, and has the first worker write it: after an update, or between
two batches of a validation, which would else lose the steps before it as well.

The first one alone decides: cadence, notices and the pace of the store are known to it. Where all
hold the same, the others hear nothing of it; where each holds a part, all have to put the state
together, so that what it decides is told to them after every update.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from jobs.train.borders import Notice, Place, StoppedError, Watcher
from jobs.train.checkpoint_writer import SECONDS_AFTER_AN_ERROR, CheckpointWriter
from jobs.train.history import EpochRecord
from jobs.train.learner import Learner
from jobs.train.position import Cadence, Tally
from jobs.train.sharding import first_says
from jobs.train.snapshot import copy_to_cpu

logger = logging.getLogger(__name__)


@dataclass
class Keeper:
    """Keeps what going on needs; `due` says when, beside the ends of epochs."""

    learner: Learner
    place: Place
    writer: CheckpointWriter
    due: Cadence

    def update(
        self,
        history: Sequence[EpochRecord],
        tally: Tally,
        num_steps: int,
        watcher: Watcher,
        *,
        is_due: bool,
    ) -> None:
        """Have a checkpoint written after an update, where one is due or asked for.

        Raises `StoppedError` where the run is asked to end, and what an earlier write raised.
        """
        self.writer.check()
        notice = watcher.notice()
        if self._is_wanted(notice, is_due=is_due):
            self.save(history, tally)
            self.due.restart()
        if notice is not None:
            self.writer.flush()
            where = f"epoch {tally.epoch + 1}, step {tally.step} of {num_steps}"
            if notice.ends:
                raise StoppedError(
                    f"stopped in {where} because of {notice.reason}; a checkpoint of that step is "
                    f"in {self.writer.checkpoints.store.uri}"
                )
            logger.warning("%s: a checkpoint was written in %s", notice.reason, where)

    def between_validation_batches(
        self, history: Sequence[EpochRecord], tally: Tally, watcher: Watcher
    ) -> None:
        """Do the same where the steps of an epoch are done and its figures are not: a run that goes
        on from there begins with the validation. Every worker has to call it equally often where
        each holds a part.
        """
        self.update(history, tally, tally.step, watcher, is_due=self.due.is_due)

    def withdraw(self) -> bool:
        """Remove the last checkpoints that have the weights of now; say whether there were any.

        Every worker does, since the first of them to raise ends the others; none where each holds a
        part. What goes wrong is a warning: the run ends for another reason.
        """
        if self.learner.is_sharded:
            return False
        checkpoints, is_done = self.writer.checkpoints, False
        try:
            self.writer.flush(SECONDS_AFTER_AN_ERROR)
            while (found := checkpoints.load_last()) is not None and self.learner.has_weights_of(
                found[1]
            ):
                checkpoints.withdraw(found[0])
                is_done = True
        except Exception as error:  # of the store, or of a checkpoint that was being written
            logger.warning("the last checkpoint could not be looked at: %s", error)
        return is_done

    def _is_wanted(self, notice: Notice | None, *, is_due: bool) -> bool:
        is_time = is_due and not self.writer.is_busy
        is_wanted = self.place.is_first and (is_time or notice is not None)
        if self.learner.is_sharded:
            return first_says(is_wanted, self.place.device)
        return is_wanted

    def save(
        self,
        history: Sequence[EpochRecord],
        tally: Tally,
        *,
        score: float | None = None,
        is_best: bool = False,
    ) -> None:
        """Have the first worker write everything that going on from here needs."""
        if not (self.place.is_first or self.learner.is_sharded):
            return
        state = self.learner.state() | {
            "history": [asdict(record) for record in history],
            "tally": tally.state(),
        }
        copy = copy_to_cpu(state, is_kept=self.place.is_first)
        if self.place.is_first:
            self.writer.save(
                copy,
                next_epoch=tally.epoch,
                next_step=tally.step,
                score=score,
                is_best=is_best,
            )
