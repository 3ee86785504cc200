"""What a sweep keeps in its run folder, so that it can go on after any end: what it is about, and a
file for each trial that is done.

    sweep.json            the space, the training that trials differ from, the images
    trials/0003.json      one that has ended, with its settings, figures and reason

A file of a trial is written once, whole, when the trial has ended. A trial without one begins
again, or goes on from its own checkpoint: those are the training's, in the run `<name>-0003`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from jobs.train.config import TrainConfig
from jobs.train.history import EpochRecord, best_epoch, score, should_stop
from models.errors import AlreadyExistsError, ConfigError, StorageError
from models.storage import Store

SWEEP = "sweep.json"
RUN = "run.json"  # of an ordinary run
TRIALS = "trials"

Status = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class Record:
    """A trial that has ended: with all its epochs, stopped because others were better, or failed.

    `epochs` has for each epoch the training loss and the validation figures. `score` is the
    monitored figure of the best one, larger is better; None where no epoch was finished.
    """

    number: int
    status: Status
    settings: dict[str, Any]
    epochs: list[dict[str, float]] = field(default_factory=list)
    score: float | None = None
    best_epoch: int | None = None  # counted from 1
    seconds: float = 0.0
    reason: str = ""

    def figure(self, name: str) -> float | None:
        """Return a figure of the best epoch."""
        return None if self.best_epoch is None else self.epochs[self.best_epoch - 1][name]


def make_record(
    number: int,
    settings: Mapping[str, Any],
    history: Sequence[EpochRecord],
    config: TrainConfig,
    *,
    seconds: float,
    failure: str | None = None,
) -> Record:
    """Sum up a trial that has ended; without a failure, whether by itself shows in its epochs."""
    ended = len(history) >= config.epochs or should_stop(history, config)
    best = best_epoch(history, config.monitor) if history else None
    return Record(
        number,
        "failed" if failure is not None else "finished" if ended else "stopped",
        dict(settings),
        [{"train_loss": r.train_loss, **(r.validation or {})} for r in history],
        None if best is None else score(history[best], config.monitor),
        None if best is None else best + 1,
        round(seconds, 1),
        failure or "",
    )


def best_of(records: Sequence[Record]) -> Record | None:
    """Return the trial with the best epoch among those that did not fail; of equals the first."""
    sound = [record for record in records if record.status != "failed" and record.score is not None]
    return max(sound, key=lambda record: (record.score, -record.number), default=None)


def claim_sweep(store: Store, about: Mapping[str, Any]) -> None:
    """Write what this sweep is about, or compare with what the same name was about before.

    Raises `ConfigError` naming what differs.
    """
    if store.exists(RUN):
        raise ConfigError(
            f"{store.uri} is the folder of a training run; give the sweep another name"
        )
    try:
        store.create(SWEEP, json.dumps(about, indent=2).encode())
        return
    except AlreadyExistsError:
        pass
    try:
        before = dict(_flat(json.loads(store.read(SWEEP))))
    except ValueError as error:
        raise StorageError(
            f"{store.uri}/{SWEEP} is damaged ({error}); give the sweep another name"
        ) from error
    now = dict(_flat(json.loads(json.dumps(about))))
    # A newer version may know settings that were not there: they had their defaults.
    differing = sorted(
        name
        for name in before.keys() | now.keys()
        if before.get(name) != now.get(name)
        and (name.startswith("space.") or name in before.keys() & now.keys())
    )
    if differing:
        changes = "; ".join(f"{n}: {before.get(n)!r}, now {now.get(n)!r}" for n in differing)
        raise ConfigError(
            f"the sweep {store.uri} was about something else before ({changes}); give it another "
            "name, or what it had then, to go on"
        )


def _flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(name, value)]
    below = value.items()
    return [
        entry for key, inner in below for entry in _flat(inner, f"{name}.{key}" if name else key)
    ]


def write_record(store: Store, record: Record) -> None:
    """Keep a trial that has ended."""
    store.write(_key(record.number), json.dumps(asdict(record)).encode())


def read_records(store: Store) -> dict[int, Record]:
    """Return the trials that have ended, by number. Raises `StorageError` for a damaged one."""
    records: dict[int, Record] = {}
    for entry in store.list(f"{TRIALS}/"):
        try:
            record = Record(**json.loads(store.read(entry.key)))
        except (TypeError, ValueError) as error:
            raise StorageError(
                f"{store.uri}/{entry.key} is damaged ({error}); delete it to run this trial again"
            ) from error
        records[record.number] = record
    return records


def _key(number: int) -> str:
    return f"{TRIALS}/{number:04}.json"
