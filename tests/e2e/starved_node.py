"""Trains on a Ray of its own that guards the memory of this machine, and uses that up at a step,
until the training has ended.

Run by a test, as a process of its own: with the settings file as argument. What ends the training
is printed as JSON with the class of the error and its message.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from functools import partial
from pathlib import Path

import yaml

from cluster.session import SessionOptions, open_session
from jobs.data.index import build_index
from jobs.train.config import TrainConfig
from jobs.train.trainer import train
from models.errors import SightlineError
from tests.faults.training.interruptions import at_step
from tests.faults.training.runs import Seen
from tests.faults.training.starving import guarding, starve


def main() -> None:
    """Train, and tell how it ended."""
    settings = Path(sys.argv[1])
    config = TrainConfig.model_validate(yaml.safe_load(settings.read_text()))
    os.environ |= guarding()
    ended = threading.Event()
    with open_session(SessionOptions(home=settings.parent, num_cpus=5, connect=False)):
        index = build_index(config.data, config.preprocess)
        with at_step(Path(config.runs) / "starved", 10, partial(starve, ended.wait)):
            try:
                train(config, index, "starved", Seen())
                line = {"error": "", "message": ""}
            except SightlineError as error:
                line = {"error": type(error).__name__, "message": str(error)}
            finally:
                ended.set()
    print(json.dumps(line))


if __name__ == "__main__":
    main()
