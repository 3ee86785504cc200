"""Sightline: its own loop on a stream of images, in this process or in workers of Ray Train."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.environment import data_cpus, usable_cores
from cluster.session import SessionOptions, open_session
from jobs.data.index import build_index
from jobs.train.borders import Watcher
from jobs.train.config import TrainConfig
from jobs.train.trainer import train

if TYPE_CHECKING:
    from benchmarks.training.trainer import Request
    from jobs.train.position import Tally


class _Resumed(Watcher):
    """Notes where the run begins, and ends it at a step in the hardest way, if asked to."""

    def __init__(self, batch_size: int, dies_at: int | None) -> None:
        self._batch_size, self._dies_at = batch_size, dies_at
        self._opened = time.perf_counter()
        self.first_step: int | None = None
        self.seconds_to_first_step: float | None = None
        self._steps = 0

    def begin(self, tally: Tally, done: int, total: int) -> None:
        self.first_step = self._steps = done // self._batch_size

    def step(self, num_images: int, loss: float, waited: float = 0.0) -> None:
        if self.seconds_to_first_step is None:
            self.seconds_to_first_step = time.perf_counter() - self._opened
        self._steps += 1
        if self._steps == self._dies_at:
            os.kill(os.getpid(), signal.SIGKILL)


def run(request: Request) -> dict[str, Any]:
    """Train; with `options["dies_at"]` only to that step, of all, counted from 1."""
    options = request.options
    config = make_config(request)
    cpus = usable_cores() + request.workers + 2
    with open_session(SessionOptions(connect=False, num_cpus=cpus)):
        index = build_index(config.data, config.preprocess, cpu_limit=data_cpus())
        watcher = _Resumed(request.batch_size, options.get("dies_at"))
        trained = train(config, index, "benchmark", watcher)
    return {
        "epochs": [record.images_per_second for record in trained.history],
        "waiting_share": [record.waiting_share for record in trained.history],
        "first_step": watcher.first_step,
        "seconds_to_first_step": watcher.seconds_to_first_step,
    }


def make_config(request: Request) -> TrainConfig:
    """Return the configuration of a run, which writes into this process's folder."""
    options = request.options
    world = max(1, request.workers)
    return TrainConfig.model_validate(
        {
            "name": "benchmark",
            "runs": options.get("runs", str(Path("runs").absolute())),
            "data": {
                "uri": request.uri,
                "source": "folder" if Path(request.uri).name == "loose" else "packed",
                "cache_gib": options.get("cache_gib"),
            },
            "preprocess": {"height": request.side, "width": request.side},
            "network": {"backbone": request.backbone, "weights": "none"},
            "optimiser": {"lr": 1e-4, "backbone_lr_scale": 1.0},
            # A worker computes on as many threads as it has CPUs.
            "workers": {
                "num_workers": request.workers,
                "cpus_per_worker": max(1, usable_cores() // world),
            },
            "checkpoint": {
                "every_steps": options.get("every_steps"),
                "every_seconds": None if "every_steps" in options else 60.0,
            },
            "epochs": request.epochs,
            "batch_size": request.batch_size // world,
            "monitor": "loss",
        }
    )
