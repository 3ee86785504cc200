"""One trial: the ordinary training with its own settings, in a run of its own, which reports each
epoch. It knows no Ray; who starts it and who decides whether it goes on, `sweep` does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from jobs.data.index import Index
from jobs.lease import Lease, holding
from jobs.train.borders import Notice, Watcher
from jobs.train.config import TrainConfig
from jobs.train.history import EpochRecord
from jobs.train.trainer import train
from jobs.train.worker import open_checkpoints
from jobs.tune.holding import holding_features

Report = Callable[[EpochRecord], None]

# A trial of a sweep whose process was killed ends a moment later than that.
PATIENCE_SECONDS = 60.0


def run_trial(config: TrainConfig, index: Index, run_id: str, report: Report) -> None:
    """Train, or go on from the run's last checkpoint; `report` gets every epoch once, in order, and
    ends the trial by raising.

    Raises what the training raises, and `ConfigError` if the run's name is held by another process.
    """
    with holding(config.runs, run_id, "name", PATIENCE_SECONDS) as lease:
        with holding_features(config) as features:
            watcher = _Reporter(report, lease, features)
            before = open_checkpoints(config, run_id).load("last")
            if before is not None and config.network.freeze == "none":
                for record in before["history"]:
                    watcher.epoch(EpochRecord(**record))
            trained = train(config, index, run_id, watcher)
        for record in trained.history:  # those that workers kept to themselves
            watcher.epoch(record)


@dataclass
class _Reporter(Watcher):
    report: Report
    lease: Lease
    features: ExitStack
    num_reported: int = field(default=0, init=False)

    def step(self, num_images: int, loss: float, waited: float = 0.0) -> None:
        self.lease.check()

    def notice(self) -> Notice | None:
        self.lease.check()
        return None

    def epoch(self, record: EpochRecord) -> None:
        self.features.close()  # the features are there
        if record.epoch == self.num_reported:
            self.num_reported += 1
            self.report(record)
