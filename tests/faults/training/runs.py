"""A small training that writes down which images each step had, so that an interrupted one can be
compared with one that was left alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jobs.data.index import Index, build_index
from jobs.train.borders import Status, Watcher
from jobs.train.config import TrainConfig
from jobs.train.history import EpochRecord
from jobs.train.samples import FOLDER
from models.storage import open_store
from tests.photos import write_photos

ROOT = Path(__file__).parents[3]
SIZE = 32
WORKERS, BATCH = 2, 4
STEPS = 16  # of each worker in an epoch

Where = tuple[int, int]  # epoch from 0, and position in its order


@dataclass
class Seen(Watcher):
    """What the driver's watcher was shown."""

    records: list[EpochRecord] = field(default_factory=list)
    statuses: list[Status] = field(default_factory=list)

    def epoch(self, record: EpochRecord) -> None:
        """Keep it."""
        self.records.append(record)

    def show(self, status: Status) -> None:
        """Keep it."""
        self.statuses.append(status)


@dataclass(frozen=True)
class Photos:
    """160 photos of two classes below `uri`, looked through once, and the runs on them there."""

    uri: str
    index: Index

    @classmethod
    def write(cls, uri: str) -> Photos:
        """Write them and look through them. Needs a running Ray."""
        write_photos(open_store(f"{uri}/photos"), count=80)
        config = cls(uri, Index.__new__(Index)).config("none")
        return cls(uri, build_index(config.data, config.preprocess))

    def config(self, run: str, **changes: object) -> TrainConfig:
        """Return how a very small network is trained on them."""
        values: dict[str, object] = {
            "name": "fire",
            "run": run,
            "runs": f"{self.uri}/runs",
            "store": f"{self.uri}/models",
            "data": {
                "uri": f"{self.uri}/photos",
                "split": {"train": 0.8, "validation": 0.2, "test": 0.0},
                "max_broken_share": 0.2,
            },
            "preprocess": {"height": SIZE, "width": SIZE},
            "network": {"backbone": "mobilenetv3_small_050", "weights": "none", "dropout": 0.2},
            "augment": {"horizontal_flip": True, "brightness": 0.2},
            "optimiser": {"lr": 0.01, "backbone_lr_scale": 1.0, "ema_decay": 0.9},
            "epochs": 3,
            "batch_size": BATCH,
            "checkpoint": {"every_steps": 2},
            "tracking": {"sample_ids": True, "every_steps": 5},
            "workers": {"num_workers": WORKERS},
            **changes,
        }
        return TrainConfig.model_validate(values)

    def run(self, name: str) -> Path:
        """Return the folder of a run."""
        return Path(self.uri) / "runs" / name


def run_module(module: str, *arguments: str, **environment: str) -> str:
    """Run a module in a Python of its own that knows nothing of this process's Ray; return what it
    printed. Fails, with what it said, if it does.
    """
    known = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**known, **environment},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def begun_by(path: Path) -> list[Where]:
    """Return the steps that one worker has begun."""
    whole = (line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n"))
    steps = [json.loads(line) for line in whole]
    return [(step["epoch"], step["position"]) for step in steps]


def files_of(folder: Path) -> list[Path]:
    """Return what the workers of all attempts have written, the oldest attempt first."""
    files = (folder / FOLDER).glob("*.jsonl")
    # A group begins when the one before it has ended: by their last lines they are in order.
    return sorted(
        (path for path in files if path.stat().st_size), key=lambda path: path.stat().st_mtime
    )


def lines(folder: Path) -> int:
    """Count the steps that workers have begun."""
    return sum(len(path.read_bytes().splitlines()) for path in files_of(folder))


def number_of(where: Where) -> int:
    """Return the number of a step, counted from 1 over all workers and epochs."""
    epoch, position = where
    return epoch * STEPS * WORKERS + position // BATCH + 1


def reached(files: Sequence[Path]) -> int:
    """Return the number of the furthest step that was begun; 0 where none was."""
    return max((number_of(where) for path in files for where in begun_by(path)), default=0)


def in_mid_epoch(folder: Path) -> set[str]:
    """Return the checkpoints of a run that are not those of an epoch's end."""
    names = (path.name for path in (folder / "checkpoints").glob("?????-*.json"))
    return {name for name in names if int(name.split("-")[1])}


def worker_of(folder: Path, rank: int) -> int:
    """Return the process of the latest worker with this rank."""
    latest = [path for path in files_of(folder) if path.name.startswith(f"{rank}-")][-1]
    return int(latest.stem.partition("-")[2])
