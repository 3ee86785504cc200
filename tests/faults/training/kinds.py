"""The ways in which a training is interrupted, each with how it goes on: by itself, or because the
run is given again.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console

from jobs.train.config import TrainConfig
from jobs.train.history import EpochRecord
from jobs.train.stages import opened_run, train_in_sight
from jobs.train.trainer import train
from tests.faults.training.interruptions import POLL_SECONDS, Interruption, at_steps
from tests.faults.training.nodes import Nodes
from tests.faults.training.runs import ROOT, Photos, Seen, in_mid_epoch, worker_of
from tests.faults.training.starving import starve
from tests.outages import Outage

CPUS_PER_WORKER = 1.5  # of the two of a node, so that each worker has a node of its own
MAX_FAILURES = 15  # of a run that is interrupted up to ten times
WHEN_ASKED = {"every_seconds": None}  # no checkpoint in mid-epoch but the one that is asked for
BREAKING_RATE = 1e30


@dataclass(frozen=True)
class Plan:
    """When a run is interrupted: at steps counted from 1 over all workers and epochs, each time by
    what happens to the worker of a rank.
    """

    run: str
    steps: Sequence[int]
    ranks: Sequence[int]


@dataclass(frozen=True)
class Site:
    """What can be broken, and the photos to train on: in a folder, and in a bucket whose runs write
    down their images in `samples`.
    """

    nodes: Nodes
    local: Photos
    bucket: Photos
    samples: Path
    outage: Outage
    outage_seconds: float

    def config(self, kind: Kind, run: str) -> TrainConfig:
        """Return how a run of a kind is trained."""
        changes: dict[str, object] = {
            "workers": {
                "num_workers": 2,
                "cpus_per_worker": CPUS_PER_WORKER,
                "max_failures": MAX_FAILURES,
            },
            "epochs": kind.epochs,
        }
        if kind.checkpoint is not None:
            changes["checkpoint"] = kind.checkpoint
        if kind.is_in_bucket:
            changes["tracking"] = {"sample_ids": str(self.samples), "every_steps": 5}
        return self.photos(kind).config(run, **changes)

    def photos(self, kind: Kind) -> Photos:
        """Return the photos that runs of a kind train on."""
        return self.bucket if kind.is_in_bucket else self.local

    def folder(self, kind: Kind, run: str) -> Path:
        """Return the folder in which a run's images are written down."""
        return self.samples / run if kind.is_in_bucket else self.local.run(run)


Process = subprocess.Popen[str]
Done = tuple[Sequence[EpochRecord], Sequence[Interruption]]


@dataclass(frozen=True)
class Kind:
    """One way to interrupt a run, and what it needs of the run."""

    interrupt: Callable[[Site, Kind, Plan], Done]
    epochs: int = 3
    epochs_drawn: int = 3  # the first ones, in which interruptions begin
    is_in_bucket: bool = False
    checkpoint: Mapping[str, int | None] | None = None  # None: every second step


def kill_worker(site: Site, kind: Kind, plan: Plan) -> Done:
    """Kill the process of a worker. Ray Train starts the group again."""
    folder = site.folder(kind, plan.run)
    return _trained(site, kind, plan, lambda i: os.kill(worker_of(folder, plan.ranks[i]), 9))


def kill_node(site: Site, kind: Kind, plan: Plan) -> Done:
    """Kill the node of a worker, and start another one, as an autoscaler does."""
    folder = site.folder(kind, plan.run)

    def act(number: int) -> None:
        site.nodes.lose(site.nodes.of_process(worker_of(folder, plan.ranks[number])))
        site.nodes.add()

    return _trained(site, kind, plan, act)


def take_node(site: Site, kind: Kind, plan: Plan) -> Done:
    """Tell Ray that the node of a worker is taken away, and take it when the run has left a
    checkpoint in mid-epoch for it.
    """
    folder, over = site.folder(kind, plan.run), threading.Event()

    def act(number: int) -> None:
        node = site.nodes.of_process(worker_of(folder, plan.ranks[number]))
        before = in_mid_epoch(folder)
        site.nodes.drain(node)
        while not (is_left := bool(in_mid_epoch(folder) - before)):
            if over.wait(POLL_SECONDS):
                break
        site.nodes.lose(node)
        site.nodes.add()
        if not is_left:
            raise RuntimeError("the run was over before it had left a checkpoint for the notice")

    return _trained(site, kind, plan, act, over)


def fail_bucket(site: Site, kind: Kind, plan: Plan) -> Done:
    """Have the bucket of images and checkpoints answer 503 for a while."""

    def act(number: int) -> None:
        refused = site.outage.num_refused
        site.outage.ends = time.monotonic() + site.outage_seconds
        time.sleep(site.outage_seconds)
        assert site.outage.num_refused > refused, "nothing was asked of the bucket meanwhile"

    return _trained(site, kind, plan, act)


def kill_driver(site: Site, kind: Kind, plan: Plan) -> Done:
    """Kill the process that started the run, and give the run again at once."""
    return _submitted(site, kind, plan, Process.kill, -signal.SIGKILL)


def break_weights(site: Site, kind: Kind, plan: Plan) -> Done:
    """Kill the process that started the run, and go on at a rate that breaks the weights, until
    the loss is no number; then at the rate that it had.
    """
    config = site.config(kind, plan.run)
    broken = config.optimiser.model_copy(update={"lr": BREAKING_RATE})
    file = _write(config.model_copy(update={"optimiser": broken}), site, kind, "broken")

    def go_on_broken() -> None:
        with _start(file, site.nodes.address) as process:
            said = process.communicate()[1]
        # a step is the first to see it, or a validation
        if process.returncode != 1 or not re.search("loss is (nan|no number)", said):
            raise RuntimeError(f"at a rate of {BREAKING_RATE:g} it said {said[-3000:]}")

    return _submitted(site, kind, plan, Process.kill, -signal.SIGKILL, then=go_on_broken)


def use_up_memory(site: Site, kind: Kind, plan: Plan) -> Done:
    """Use up the machine's memory until the process that started the run has ended, and give the
    run again.
    """

    def act(process: Process) -> None:
        def is_over(seconds: float) -> bool:
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            return process.poll() is not None

        starve(is_over)

    return _submitted(site, kind, plan, act, 1, said=r"(?s)OutOfMemoryError.*batch_size \(now 4\)")


def ask_driver_to_end(site: Site, kind: Kind, plan: Plan) -> Done:
    """Send SIGTERM to the process that started the run, and give the run again when it has
    ended.
    """
    return _submitted(site, kind, plan, Process.terminate, 1)


KINDS = {
    "worker": Kind(kill_worker),
    "node": Kind(kill_node),
    "driver": Kind(kill_driver),
    "bucket": Kind(fail_bucket, is_in_bucket=True),
    # longer, so that it still trains when its workers are told, by Ray Train and once a second
    "preemption": Kind(take_node, epochs=16, epochs_drawn=10, checkpoint=WHEN_ASKED),
    "sigterm": Kind(ask_driver_to_end, epochs=8, epochs_drawn=5, checkpoint=WHEN_ASKED),
    # after each step, so that there are some of broken weights
    "nan": Kind(break_weights, epochs_drawn=2, checkpoint={"every_steps": 1}),
    "memory": Kind(use_up_memory, epochs=16, epochs_drawn=10),
}


def train_alone(site: Site, kind: Kind, run: str) -> Sequence[EpochRecord]:
    """Train without an interruption."""
    return train(site.config(kind, run), site.photos(kind).index, run, Seen()).history


def _trained(
    site: Site,
    kind: Kind,
    plan: Plan,
    act: Callable[[int], None],
    over: threading.Event | None = None,
) -> Done:
    """Train in this process, and do something at the steps; `over` is set when it has ended."""
    folder, restarts = site.folder(kind, plan.run), not kind.is_in_bucket
    with at_steps(folder, plan.steps, act, restarts=restarts) as seen:
        try:
            history = train_alone(site, kind, plan.run)
        finally:
            if over is not None:
                over.set()
    return history, seen


def _submitted(
    site: Site,
    kind: Kind,
    plan: Plan,
    act: Callable[[Process], None],
    status: int,
    said: str = "",
    then: Callable[[], None] = lambda: None,
) -> Done:
    """Train in processes of their own, with each of which something is done at its step, so that it
    ends with a status and says something; `then` is called after each. At last train in this one.
    """
    config, photos = site.config(kind, plan.run), site.photos(kind)
    file = _write(config, site, kind, "whole")
    started: list[Process] = []
    try:
        with at_steps(
            site.folder(kind, plan.run), plan.steps, lambda number: act(started[number])
        ) as seen:
            for _ in plan.steps:
                started.append(_start(file, site.nodes.address))
                words = started[-1].communicate()[1]
                if started[-1].returncode != status or not re.search(said, words):
                    raise RuntimeError(f"it ended with {started[-1].returncode}: {words[-3000:]}")
                then()
            console = Console(quiet=True)
            with opened_run(config, console) as (run_id, lease):
                trained = train_in_sight(config, photos.index, run_id, lease, console)
    finally:
        for process in started:
            process.kill()
    return trained.history, seen


def _write(config: TrainConfig, site: Site, kind: Kind, name: str) -> Path:
    """Write the settings of a run where a process of its own finds them."""
    file = Path(site.photos(kind).uri) / f"{config.run}-{name}.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return file


def _start(file: Path, address: str) -> Process:
    return Process(
        [sys.executable, "-m", "jobs.train", str(file)],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": address},
        stderr=subprocess.PIPE,
        text=True,
    )
