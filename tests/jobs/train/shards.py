"""Runs of two workers that torch has connected, whole and in parts, in two processes for all of
them: to start one takes longer than to train.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from jobs.data.streams import Batch
from jobs.train.borders import Place
from jobs.train.checkpoints import Checkpoints
from jobs.train.config import TrainConfig
from jobs.train.embedding_network import fit_to_kind
from jobs.train.history import EpochRecord
from jobs.train.learner import Learner
from jobs.train.loop import fit
from jobs.train.network import Network, build_network
from jobs.train.objectives import Objective
from jobs.train.sharding import own
from jobs.train.steps import Autocast, train_step
from models.storage import open_store
from tests.jobs.train.test_loop import NAMES, Notes, Shades, make_config

IMAGES = 64
BATCH = 8
CUT = 3  # of the eight steps of two epochs

ADAMW = {"lr": 0.005, "backbone_lr_scale": 1.0, "warmup_epochs": 0.5, "ema_decay": 0.9}
# Biases before a batch norm have no gradient but noise, of which AdamW would make whole steps.
SGD = {**ADAMW, "kind": "sgd", "lr": 0.05}
WITH_BATCH_NORM = {"backbone": "test_efficientnet"}

# what each run changes, beside the number of workers and whether they split
RUNS: dict[str, dict[str, Any]] = {
    "AdamW and stochastic depth": {},
    "batch norm and a rate for every layer": {
        "network": WITH_BATCH_NORM,
        "optimiser": {**SGD, "layer_decay": 0.8},
    },
    "parts of updates and gradual unfreezing": {
        "network": {**WITH_BATCH_NORM, "head_epochs": 1},
        "optimiser": SGD,
        "accumulate": 3,  # and 1, in an epoch of four steps
    },
    "bfloat16 and no average": {"precision": "bf16", "optimiser": {**ADAMW, "ema_decay": 0.0}},
    "class directions outside of the network": {
        "kind": "embedding",
        "monitor": "recall_at_1",
        "embedding": {"size": 8, "objective": "arcface", "scale": 4},
        "optimiser": {**ADAMW, "lr": 0.0005},
    },
}


def make_run(*, shard: bool, **changes: object) -> TrainConfig:
    """Return the configuration of a short run of two workers."""
    values: dict[str, object] = {
        "epochs": 2,
        "batch_size": BATCH,
        "network": {"backbone": "test_convnext", "drop_path": 0.3},
        "optimiser": ADAMW,
        "checkpoint": {"every_steps": 2, "every_seconds": None},
        "workers": {"num_workers": [1, 2], "shard": shard},
    }
    return make_config(**{**values, **changes})


def build(config: TrainConfig) -> Network:
    """Return the configured network, the same in every process."""
    torch.manual_seed(0)
    network = build_network(config.network.backbone, 2, 0.1, config.network.drop_path)
    return fit_to_kind(network, config, 2)


@dataclass
class Shares(Shades):
    """One worker's share, of validation images fewer batches than the first one's."""

    rank: int = 0
    world: int = 1

    def num_train_batches(self, start: int = 0) -> int:
        """Return the batches of this worker from there on."""
        return (IMAGES - start) // (BATCH * self.world)

    def train(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this worker's part of every step."""
        order = np.random.default_rng(epoch).permutation(IMAGES)
        for first in range(start, IMAGES, BATCH * self.world):
            mine = first + BATCH * self.rank
            yield self.images(order[mine : mine + BATCH])

    def validation(self) -> Iterator[Batch]:
        """Yield every second batch, of three."""
        yield from list(super().validation())[self.rank :: self.world]


@dataclass
class Losses(Notes):
    """Notes the loss of every step, and ends the run after some of them as a kill would."""

    losses: list[float] = field(default_factory=list)
    ends_after: int | None = None

    def step(self, num_images: int, loss: float, waited: float = 0.0) -> None:
        """Note a step."""
        super().step(num_images, loss, waited)
        self.losses.append(loss)
        if self.steps == self.ends_after:
            raise KeyboardInterrupt


def train(
    folder: Path, config: TrainConfig, place: Place, ends_after: int | None = None
) -> tuple[list[float], list[EpochRecord]]:
    """Train, or go on; return the losses of this worker's steps and the history."""
    notes = Losses(ends_after=ends_after)
    history: list[EpochRecord] = []
    with suppress(KeyboardInterrupt):
        history = fit(
            build(config),
            Shares(rank=place.rank, world=place.world),
            config,
            class_names=NAMES,
            class_counts=(48, 48),
            checkpoints=Checkpoints(open_store(folder)),
            place=place,
            watcher=notes,
        )
    return notes.losses, history


def weigh(place: Place, *, shard: bool) -> dict[str, int]:
    """Return the bytes that a worker holds between two steps, and of weights while it computes its
    head.
    """
    config = make_run(shard=shard)
    learner = Learner(build(config), config, place, steps=6)
    together: list[int] = []

    def look(*_: object) -> None:
        together.append(sum(own(one).nbytes for one in learner.network.parameters()))

    learner.network.head.register_forward_hook(look)
    images = next(Shares(rank=place.rank, world=2).train(0))
    for _ in range(2):
        train_step(
            learner.network,
            torch.from_numpy(images.images),
            torch.from_numpy(images.labels),
            objective=Objective(),
            optimiser=learner.optimiser,
            schedule=learner.schedule,
            clip_norm=1.0,
            autocast=Autocast("cpu", enabled=False),
        )
        learner.follow()
    weights = list(learner.network.parameters())
    moments = [value for state in learner.optimiser.state.values() for value in state.values()]
    return {
        "weights": size(weights),
        "gradients": size([weight.grad for weight in weights]),
        "moments": size([moment for moment in moments if moment.ndim]),
        "average": size(learner.served.parameters()),
        "while computing": max(together),
    }


def size(tensors: Any) -> int:
    """Return the bytes of a worker's own parts."""
    return sum(own(tensor).nbytes for tensor in tensors)


def work(rank: int, folder: str) -> None:
    """Do one of two workers' part in everything, and leave what came of it."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    place, root = Place(torch.device("cpu"), rank, 2), Path(folder)
    found: dict[str, Any] = {}
    for name, changes in RUNS.items():
        for shard in (False, True):
            config = make_run(shard=shard, checkpoint={"every_seconds": None}, **changes)
            losses, history = train(root / name / str(shard), config, place)
            found[f"{name} {shard}"] = losses, [record.validation for record in history]
    for before in (False, True):
        cut = root / "cut" / str(before)
        train(cut, make_run(shard=before), place, ends_after=CUT)
        distributed.barrier()
        for after in (False, True):
            if place.is_first:
                shutil.copytree(cut, f"{cut} {after}")
            distributed.barrier()
            train(Path(f"{cut} {after}"), make_run(shard=after), place)
    found["bytes"] = {shard: weigh(place, shard=shard) for shard in (False, True)}
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()
