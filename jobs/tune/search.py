"""A whole search, from a configuration to its results: the range test, or a sweep whose best trial
is published.

Trials are chosen by validation images alone. The figures on the test split come from the ordinary
training pipeline, which exports the best trial, and are of what will serve.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from cluster.environment import data_cpus
from jobs.console import Advance, bar
from jobs.data.index import Index
from jobs.data.labels import refuse_unservable
from jobs.data.tables import read_index
from jobs.lease import holding
from jobs.train.config import TrainConfig
from jobs.train.identity import digest_of_images
from jobs.train.idle import idle_settings, idle_with_images
from jobs.train.inputs import check_sizes
from jobs.train.network import build_network
from jobs.train.pipeline import Outcome, run_training
from jobs.train.stages import print_notes
from jobs.train.threads import use_all_cores
from jobs.train.worker import check_tracking, open_checkpoints, prepare_network
from jobs.train.wrapping import check_compiler
from jobs.tune import pictures
from jobs.tune.board import Board, trials_table
from jobs.tune.config import TuneConfig
from jobs.tune.holding import holding_features
from jobs.tune.lr_test import run_lr_test
from jobs.tune.records import Record, best_of, claim_sweep, read_records, write_record
from jobs.tune.space import Trial, draw_trials
from jobs.tune.suggestion import RangeTest
from jobs.tune.sweep import await_trial, num_at_once, run_name, run_sweep
from models.errors import DataError, NotFoundError, SightlineError
from models.storage import Store, is_remote, open_store

BEST, LR_RESULT = "best.yaml", "lr_test.json"


@dataclass(frozen=True)
class SweepOutcome:
    """What a sweep gave. `best_config` is the address of a file that `jobs.train` takes."""

    records: list[Record]
    best: Record
    best_config: str
    published: Outcome | None = None
    num_by_status: dict[str, int] = field(default_factory=dict)


class NoTrialError(SightlineError):
    """Not one trial of a sweep came to a figure."""

    code = "no_trial"


def find_lr(config: TuneConfig, training: TrainConfig, console: Console) -> tuple[RangeTest, str]:
    """Run the range test; return it with the folder that its picture and `lr_test.json` are in.

    Needs a running Ray. Raises the errors of the training's stages.
    """
    store = _prepare(config, training)
    with ExitStack() as held:
        held.enter_context(holding(training.runs, config.name, "name"))
        held.enter_context(holding_features(training))
        index = read_index(training.data, training.preprocess, console, cpu_limit=data_cpus())
        with bar(console, "range test", config.lr_test.steps) as advance:
            test = run_lr_test(training, config.lr_test, index, config.name, _counting(advance))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / pictures.LR_TEST
            pictures.draw_range_test(test, path)
            store.upload(pictures.LR_TEST, path)
        store.write(LR_RESULT, json.dumps(test.as_json(), indent=2).encode())
    return test, store.uri


def _counting(advance: Advance) -> Any:
    return lambda count: advance(count)


def sweep(
    config: TuneConfig, training: TrainConfig, trials: Sequence[Trial], console: Console
) -> SweepOutcome:
    """Run what is left of a sweep, write its table and pictures, and publish the best trial. Needs
    a running Ray.

    Raises `ConfigError` when the same name is at work or was about something else, `DataError`
    without validation images, and `NoTrialError` when no trial came to a figure.
    """
    store = _prepare(config, training, trials)
    with holding(training.runs, config.name, "name") as lease:
        index = read_index(training.data, training.preprocess, console, cpu_limit=data_cpus())
        if training.embedding is None:
            refuse_unservable(training.data.uri, index.classes)
        if not index.num_images("validation"):
            raise DataError(
                f"{training.data.uri} has no validation images to compare trials by; set "
                "train.data.split"
            )
        notes = (idle_with_images(trial.config, index) for trial in trials)
        print_notes(dict.fromkeys(chain.from_iterable(notes)), console)
        claim_sweep(store, _about(config, training, index))
        kept = _kept(config, read_records(store), trials, console)

        def keep(record: Record) -> None:
            lease.check()
            write_record(store, record)
            _drop_checkpoints(config, training, list(board.records.values()), record)

        if len(kept) < len(trials):
            await_trial(training.workers, lease.check)  # before the board takes the screen
            at_once = num_at_once(config, training.workers)
            console.print(f"trials side by side: {at_once}", highlight=False)
        board = Board(console, trials, kept, keep)
        with board.shown():
            run_sweep(config, trials, kept, index, board)
        records = [board.records[number] for number in sorted(board.records)]
        console.print(trials_table(records, training.monitor))
        best = best_of(records)
        _write_pictures(store, records, training.monitor, best)
        _sweep_up(config, training, records, best)
        if best is None:
            raise NoTrialError(_all_failed(records))
        chosen = next(trial for trial in trials if trial.number == best.number)
        store.write(BEST, _as_yaml(chosen, best).encode())
        lease.check()
        published = _publish(config, chosen, console) if config.publish else None
    return SweepOutcome(
        records,
        best,
        f"{store.uri}/{BEST}",
        published,
        {s: sum(r.status == s for r in records) for s in ("finished", "stopped", "failed")},
    )


def _prepare(config: TuneConfig, training: TrainConfig, trials: Sequence[Trial] = ()) -> Store:
    """Check what can be checked before the images are read; return the folder of the search."""
    import timm

    use_all_cores()
    check_sizes(prepare_network(training, 2), training)
    check_tracking(training)
    if not training.workers.most and training.network.freeze == "none":
        check_compiler(training.compile)
    for backbone in dict.fromkeys(trial.config.network.backbone for trial in trials):
        if not timm.is_model(backbone):
            build_network(backbone, 2)  # says so, and names the nearest
    for uri in dict.fromkeys((training.store, training.runs)):
        open_store(uri).check_writable()
    return open_store(training.runs).child(config.name)


def plan(config: TuneConfig, training: TrainConfig, console: Console) -> list[Trial]:
    """Return the trials of a sweep, and say how many they are."""
    trials = draw_trials(config, training)
    if len(trials) < config.trials:
        console.print(
            f"[yellow]note:[/] the space has {len(trials)} different points, so there are no more "
            f"trials than that, instead of {config.trials}",
            highlight=False,
        )
    notes = (idle_settings(trial.config, is_trial=True) for trial in trials)
    print_notes(dict.fromkeys(chain.from_iterable(notes)), console)
    return trials


def _about(config: TuneConfig, training: TrainConfig, index: Index) -> dict[str, Any]:
    space = {name: parameter.model_dump(mode="json") for name, parameter in config.space.items()}
    return {
        "space": space,
        "seed": config.seed,
        "asha": config.asha.model_dump(mode="json"),
        "train": training.model_dump(mode="json", exclude={"run", "store", "workers", "export"}),
        "images": digest_of_images(index),
    }


def _kept(
    config: TuneConfig, records: dict[int, Record], trials: Sequence[Trial], console: Console
) -> dict[int, Record]:
    """Return the trials that need not be run again."""
    wanted = {trial.number for trial in trials}
    kept = {
        number: record
        for number, record in records.items()
        if number in wanted and not (config.retry_failed and record.status == "failed")
    }
    if records:
        console.print(
            f"going on with sweep {config.name}: {len(kept)} of {len(trials)} trials have ended",
            highlight=False,
        )
    return kept


def _drop_checkpoints(
    config: TuneConfig, training: TrainConfig, before: Sequence[Record], new: Record
) -> None:
    """Remove the checkpoints, a few hundred megabytes each, of a trial that has just ended, or of
    the one that was the best before it.
    """
    leaders = best_of(before), best_of([*before, new])
    for record in (leaders[0], new):
        if record is not None and record is not leaders[1]:
            _remove_checkpoints(config, training, record)


def _sweep_up(
    config: TuneConfig, training: TrainConfig, records: Sequence[Record], best: Record | None
) -> None:
    """Remove what trials have written after they had ended. Tune tells of an end before it stops
    the trial, whose thread writes the checkpoint of its last epoch meanwhile.
    """
    for record in records:
        if record is not best:
            store = _remove_checkpoints(config, training, record)
            if store is not None and not is_remote(store.uri):
                for left in Path(store.uri).glob("*#*"):  # by a write that was killed
                    left.unlink(missing_ok=True)


def _remove_checkpoints(config: TuneConfig, training: TrainConfig, record: Record) -> Store | None:
    """Remove the checkpoints of a trial; return where they were, None for one that failed: with
    `retry_failed` it goes on from them.
    """
    if record.status == "failed":
        return None
    store = open_checkpoints(training, run_name(config.name, record.number)).store
    with suppress(NotFoundError):
        for entry in list(store.list()):
            store.delete(entry.key)
    return store


def _write_pictures(
    store: Store, records: Sequence[Record], monitor: str, best: Record | None
) -> None:
    number = None if best is None else best.number
    with tempfile.TemporaryDirectory() as folder:
        for name, draw in (
            (pictures.PARALLEL, pictures.draw_parallel),
            (pictures.CURVES, pictures.draw_curves),
        ):
            path = Path(folder) / name
            draw(records, monitor, number, path)
            store.upload(name, path)


def _all_failed(records: Sequence[Record]) -> str:
    reasons = dict.fromkeys(record.reason for record in records)
    return (
        f"none of {len(records)} trials came to a figure. Why: {'; '.join(reasons)}. After mending "
        "it, run again with retry_failed=true"
    )


def _as_yaml(trial: Trial, best: Record) -> str:
    """Return the settings of a trial as a configuration of `jobs.train`."""
    values = trial.config.model_dump(mode="json", exclude={"run"})
    monitor = trial.config.monitor
    body = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return (
        f"# Trial {trial.number} of a sweep: validation {monitor} {best.figure(monitor):.4f} in "
        f"epoch {best.best_epoch}. Train it again with\n"
        f"#   python -m jobs.train {BEST}\n{body}"
    )


def _publish(config: TuneConfig, trial: Trial, console: Console) -> Outcome:
    """Export the best trial through the ordinary pipeline, in the run that it was trained in: what
    its checkpoint has is not trained again.
    """
    name = run_name(config.name, trial.number)
    console.print(f"exporting trial {trial.number}", highlight=False)
    _say_if_anew(trial, name, console)
    values = {**trial.config.model_dump(mode="json"), "run": name}
    return run_training(TrainConfig.model_validate(values), console, is_trial=True)


def _say_if_anew(trial: Trial, run_id: str, console: Console) -> None:
    """Say where nothing is left of a trial's training: its checkpoints were removed for a better
    trial, which a sweep that was made shorter has no more. A head is fitted anew in any case.
    """
    if trial.config.network.freeze == "backbone":
        return
    if open_checkpoints(trial.config, run_id).find("last") is None:
        console.print(
            f"[yellow]note:[/] the checkpoints of trial {trial.number} are gone, since another one "
            "was better when the sweep had more trials; it is trained again from the beginning",
            highlight=False,
        )
