"""Run trials with Ray Tune: as many at once as there is room for, and those that are behind are
stopped by asynchronous successive halving (Li et al. 2018, arXiv 1810.05934).

What Tune would keep for going on after a kill is not used: `Tuner.restore` (Ray 2.60) brings back
trials as of some seconds before, and nothing of the scheduler, so that trials of the second start
would be measured against each other only. Ours are kept in `records`, each as it ends. So each
start is a new Tune experiment over the trials that have not ended, whose scheduler is first told of
those that have.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import ray
from ray import cloudpickle, tune
from ray.tune.execution import class_cache
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from cluster.environment import data_cpus
from jobs.causes import find_cause
from jobs.data.index import Index
from jobs.room import await_room
from jobs.train.config import TrainConfig
from jobs.train.freed_memory import tunables
from jobs.train.history import EpochRecord, score
from jobs.train.workers_config import READING, WorkersConfig
from jobs.tune.config import AshaConfig, TuneConfig
from jobs.tune.quiet import logged, quiet
from jobs.tune.records import Record, make_record
from jobs.tune.space import Trial
from jobs.tune.trial import run_trial
from models.storage import is_remote, open_store

# How long the thread of a trial that was stopped may take to end before its process is given up.
SECONDS_TO_END = "120"
EPOCH, SCORE, RECORD, NUMBER = "epoch", "score", "record", "number"


class Watcher(Protocol):
    """Who wants to know how a sweep goes on; called in the process that runs it."""

    def started(self, number: int) -> None:
        """A trial has begun."""
        ...

    def epoch(self, number: int, record: EpochRecord) -> None:
        """A trial has finished an epoch."""
        ...

    def ended(self, record: Record) -> None:
        """A trial has ended, in whatever way."""
        ...


def run_sweep(
    config: TuneConfig,
    trials: Sequence[Trial],
    ended: Mapping[int, Record],
    index: Index,
    watcher: Watcher,
) -> None:
    """Run the trials that are not among those that have `ended`. Needs a running Ray, with room for
    one: see `await_trial`.

    A trial that fails is told to the watcher like any other.
    """
    records, num_before = dict(ended), -1
    while len(records) > num_before:  # Tune forgets a trial whose process could not be used again
        num_before = len(records)
        pending = [trial for trial in trials if trial.number not in records]
        if not pending:
            return
        follower = _Follower(pending, watcher)
        _run(config, pending, _scheduler(config.asha, trials, records), index, follower)
        records |= follower.records


def _run(
    config: TuneConfig,
    pending: Sequence[Trial],
    scheduler: TrialScheduler,
    index: Index,
    follower: _Follower,
) -> None:
    """Run one experiment of Tune."""
    training = pending[0].config
    workers = training.workers
    # Workers of Ray Train reserve for themselves; Tune wants to reserve something all the same, and
    # a part of a CPU would leave none whole to read images with.
    resources: dict[str, float] = {"memory": 1 << 20}
    if not workers.most:
        resources = workers.bundle
    payload = {
        "configs": {trial.number: trial.config.model_dump(mode="json") for trial in pending},
        "name": config.name,
    }
    trainable = tune.with_parameters(_trial_main, payload=payload, index=index)
    environment = {} if workers.use_gpu or workers.most else tunables()
    with quiet(), _environment(environment), _folder(config, training) as folder:
        tune.Tuner(
            tune.with_resources(trainable, resources),
            param_space={NUMBER: tune.grid_search([trial.number for trial in pending])},
            tune_config=tune.TuneConfig(
                scheduler=scheduler,
                max_concurrent_trials=num_at_once(config, workers),
                # A new process needs seconds to load torch; with frozen features that is the trial.
                reuse_actors=True,
                trial_dirname_creator=lambda trial: f"{trial.config[NUMBER]:04}",
            ),
            run_config=tune.RunConfig(
                name=f"tune-{secrets.token_hex(4)}",
                storage_path=folder,
                callbacks=[follower],
                failure_config=tune.FailureConfig(max_failures=0),
                verbose=0,
            ),
        ).fit()


def run_name(sweep: str, number: int) -> str:
    """Return the name of a trial's run."""
    return f"{sweep}-{number:04}"


def await_trial(workers: WorkersConfig, look: Callable[[], None]) -> None:
    """Return when there is room for one trial, and to read its images. `look` is called every
    second of waiting, and may raise.

    Raises `ConfigError` if there is none in time.
    """
    # Elastic workers begin with as many as there is room for.
    await_room(
        [workers.bundle] * max(1, workers.least) + [READING],
        workers.wait_seconds,
        "That is one trial, and one CPU to read images. Lower train.workers, or add nodes",
        look,
    )


def num_at_once(config: TuneConfig, workers: WorkersConfig) -> int:
    """Return how many trials may run side by side, in the cluster as it is: a CPU is left for the
    tasks that read images, and on this machine no more are started than it has cores.
    """
    found, most = ray.cluster_resources(), max(1, workers.most)  # side by side, all want the most
    room = [(float(found.get("CPU", 0)) - 1) / (most * workers.cpus_per_worker)]
    if workers.use_gpu:
        room.append(float(found.get("GPU", 0)) / most)
    elif (cores := data_cpus()) is not None:
        room.append(cores / (most * workers.cpus_per_worker))
    return min(max(1, int(min(room))), config.concurrent or config.trials)


def _scheduler(
    config: AshaConfig, trials: Sequence[Trial], ended: Mapping[int, Record]
) -> TrialScheduler:
    """Return the scheduler, which knows of the trials that ended before."""
    if not config.enabled:
        return FIFOScheduler()
    longest = max(trial.config.epochs for trial in trials)
    scheduler = ASHAScheduler(
        time_attr=EPOCH,
        metric=SCORE,
        mode="max",
        max_t=longest,
        grace_period=min(config.grace_epochs, longest),
        reduction_factor=config.reduction,
    )
    by_number = {trial.number: trial for trial in trials}
    for number, record in ended.items():
        if number not in by_number:
            continue
        stub = SimpleNamespace(trial_id=f"ended-{number}")
        scheduler.on_trial_add(None, stub)
        for epoch, figures in enumerate(record.epochs):
            loss = figures["train_loss"]
            past = EpochRecord(epoch, loss, figures)
            scheduler.on_trial_result(None, stub, _result(past, by_number[number].config.monitor))
        scheduler.on_trial_remove(None, stub)
    return scheduler


def _result(record: EpochRecord, monitor: str) -> dict[str, Any]:
    """Return what Tune is told of an epoch."""
    return {EPOCH: record.epoch + 1, SCORE: score(record, monitor), RECORD: vars(record)}


def _trial_main(
    point: dict[str, Any], payload: dict[str, Any] | None = None, index: Index | None = None
) -> None:
    """Run in a thread of the trial's actor. Its log goes into the run's folder, if there is any:
    the console belongs to the sweep.
    """
    assert payload is not None
    assert index is not None
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = SECONDS_TO_END  # Tune hands on none of its own
    number = point[NUMBER]
    config = TrainConfig.model_validate(payload["configs"][number])
    name = run_name(payload["name"], number)
    with logged(config.runs, name):
        run_trial(
            config,
            index,
            name,
            lambda record: tune.report(_result(record, config.monitor)),
        )


class _Follower(tune.Callback):  # type: ignore[misc]
    """Hands on what Tune tells about its trials."""

    def __init__(self, trials: Sequence[Trial], watcher: Watcher) -> None:
        self._trials = {trial.number: trial for trial in trials}
        self._watcher = watcher
        self._histories: dict[int, list[EpochRecord]] = {number: [] for number in self._trials}
        self._started: dict[int, float] = {}
        self._error: Exception | None = None
        self.records: dict[int, Record] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its callbacks down to restore them, which nobody does; consoles cannot be."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = trial.config[NUMBER]
        self._started[number] = time.monotonic()
        self._watcher.started(number)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        number = trial.config[NUMBER]
        record = EpochRecord(**result[RECORD])
        if record.epoch < len(self._histories[number]):
            return  # Tune tells the last one again when a trial has ended by itself
        self._histories[number].append(record)
        self._watcher.epoch(number, record)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial.config[NUMBER], None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial.config[NUMBER], _failure(trial))

    def _end(self, number: int, failure: str | None) -> None:
        trial = self._trials[number]
        seconds = time.monotonic() - self._started.get(number, time.monotonic())
        record = make_record(
            number,
            trial.settings,
            self._histories[number],
            trial.config,
            seconds=seconds,
            failure=failure,
        )
        self.records[number] = record
        try:
            self._watcher.ended(record)
        except Exception as error:  # Tune would take it for one of the trial
            self._error = self._error or error

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """End the sweep where a trial could not be kept."""
        if self._error is not None:
            raise self._error


def _failure(trial: Any) -> str:
    """Return why a trial failed, from the files that Tune has just written on this machine: its own
    functions look for them where they are copied to, later.
    """
    if trial.pickled_error_file and Path(trial.pickled_error_file).exists():
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
        cause = find_cause(error)
        if cause is not None:
            return f"{type(cause).__name__}: {cause}"
        text = str(error)
    elif trial.error_file and Path(trial.error_file).exists():
        text = Path(trial.error_file).read_text()
    else:
        return "ended without a reason"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "ended without a reason"


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Start the processes of trials with these, too. Tune (Ray 2.60) has no argument for it, and
    the job's own environment would be that of the tasks that read images as well.
    """
    before = dict(class_cache.DEFAULT_ENV_VARS)
    class_cache.DEFAULT_ENV_VARS.update(variables)
    try:
        yield
    finally:
        class_cache.DEFAULT_ENV_VARS.clear()
        class_cache.DEFAULT_ENV_VARS.update(before)


@contextmanager
def _folder(config: TuneConfig, training: TrainConfig) -> Iterator[str]:
    """Give Tune a place for its own notes, which nobody needs afterwards; all nodes must see it."""
    uri = open_store(training.runs).child(f"{config.name}/tune").uri
    if is_remote(uri):
        yield uri
        return
    Path(uri).mkdir(parents=True, exist_ok=True)
    try:
        yield uri
    finally:
        shutil.rmtree(uri, ignore_errors=True)
