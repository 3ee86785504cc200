"""Trains on a cluster on this machine that has room for one worker, and gets a node for another one
at a step. Ends when both have trained for a while.

Run by a test, as a process of its own: with settings file, index file, run and step as arguments.
"""

from __future__ import annotations

import pickle
import sys
from contextlib import suppress
from pathlib import Path

import yaml

from jobs.train.borders import Notice, StoppedError, Watcher
from jobs.train.config import TrainConfig
from jobs.train.samples import FOLDER
from jobs.train.trainer import train
from tests.faults.training.interruptions import at_step
from tests.faults.training.nodes import Nodes
from tests.faults.training.runs import begun_by

CPUS = 2  # of a node, and of a worker; the head's one is for the tasks that read
STEPS_TOGETHER = 20


class Ending(Watcher):
    """Asks the run to end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def notice(self) -> Notice | None:
        """Return the notice, once the second worker has done its steps."""
        for path in (self._folder / FOLDER).glob("1-*.jsonl"):
            if len(begun_by(path)) >= STEPS_TOGETHER:
                return Notice("seen enough", ends=True)
        return None


def main() -> None:
    """Train for as long as it takes."""
    settings, index, run, step = sys.argv[1:]
    config = TrainConfig.model_validate(yaml.safe_load(Path(settings).read_text()))
    folder = Path(config.runs) / run
    with (
        Nodes.opened(count=1, cpus=CPUS) as nodes,
        at_step(folder, int(step), nodes.add),
        suppress(StoppedError),
    ):
        train(config, pickle.loads(Path(index).read_bytes()), run, Ending(folder))


if __name__ == "__main__":
    main()
