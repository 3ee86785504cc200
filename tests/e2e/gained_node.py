"""Trains on a cluster on this machine whose room is for one worker, and that gets another node at a
step.

Run by a test, as a process of its own: with settings file, index file, run and step as arguments.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import yaml

from jobs.train.borders import Watcher
from jobs.train.config import TrainConfig
from jobs.train.trainer import train
from tests.faults.training.interruptions import at_step
from tests.faults.training.nodes import Nodes


def main() -> None:
    """Train to the end."""
    settings, index, run, step = sys.argv[1:]
    config = TrainConfig.model_validate(yaml.safe_load(Path(settings).read_text()))
    with (
        Nodes.opened(count=1, cpus=1) as nodes,
        at_step(Path(config.runs) / run, int(step), nodes.add),
    ):
        train(config, pickle.loads(Path(index).read_bytes()), run, Watcher())


if __name__ == "__main__":
    main()
