"""Trains on a cluster of two nodes on this machine, and loses the one with more CPUs at a step.

Run by a test, as a process of its own: with settings file, index file, run and step as arguments.
With `drain` behind them, Ray is told of the loss before, and the node is lost once the run has left
a checkpoint in mid-epoch.
"""

from __future__ import annotations

import pickle
import sys
import time
from pathlib import Path

import yaml

from jobs.train.borders import Watcher
from jobs.train.config import TrainConfig
from jobs.train.trainer import train
from tests.faults.training.interruptions import POLL_SECONDS, at_step
from tests.faults.training.nodes import Nodes
from tests.faults.training.runs import in_mid_epoch


def main() -> None:
    """Train to the end."""
    settings, index, run, step, *drained = sys.argv[1:]
    config = TrainConfig.model_validate(yaml.safe_load(Path(settings).read_text()))
    folder = Path(config.runs) / run
    with Nodes.opened(count=1, cpus=2) as nodes:
        (node,) = nodes.cluster.worker_nodes

        def lose() -> None:
            if drained:
                nodes.drain(node)
                while not in_mid_epoch(folder):
                    time.sleep(POLL_SECONDS)
            nodes.lose(node)

        with at_step(folder, int(step), lose):
            train(config, pickle.loads(Path(index).read_bytes()), run, Watcher())


if __name__ == "__main__":
    main()
