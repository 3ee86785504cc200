"""What a run was trained for, kept beside its checkpoints, so that a name used again for something
else is refused instead of publishing old weights under new labels.
"""

from __future__ import annotations

import hashlib
import json

from jobs.data.index import Index
from jobs.train.config import TrainConfig
from jobs.train.epoch_order import shuffle_of
from models.errors import AlreadyExistsError, ConfigError, StorageError
from models.storage import open_store

FILE = "run.json"
ROWS_AT_ONCE = 65_536


def claim_run(config: TrainConfig, index: Index, run_id: str) -> None:
    """Write what this run trains for, or compare with what the same name trained for before.

    Raises `ConfigError` naming what differs. Numbers of epochs and the optimiser's settings may
    differ: going on with others is a choice. What a run of an older version did not write down is
    not compared.
    """
    store = open_store(config.runs).child(run_id)
    mine = _identity(config, index)
    try:
        store.create(FILE, json.dumps(mine, indent=2).encode())
        return
    except AlreadyExistsError:
        pass
    try:
        before: dict[str, object] = json.loads(store.read(FILE))
    except ValueError as error:
        raise StorageError(f"{store.uri}/{FILE} is damaged ({error}); use another run") from error
    differing = [key for key, value in mine.items() if _filled(before.get(key), value) != value]
    if differing:
        changes = "; ".join(f"{key}: {before.get(key)!r}, now {mine[key]!r}" for key in differing)
        raise ConfigError(
            f"run {run_id!r} was trained for something else before ({changes}); "
            "give another `run`, or what it had then, to go on"
        )


def _filled(before: object, now: object) -> object:
    """Return what was written down, with what an older version knew nothing of as it is now."""
    if isinstance(before, dict) and isinstance(now, dict):
        return {**now, **before}
    return now if before is None else before


def digest_of_images(index: Index) -> str:
    """Return what changes with any image, its label, split, weight or box."""
    images = hashlib.sha256()
    said = [name for name in ("weight", "box") if _says(index, name)]
    for column in ("sha256", "label", "split", *said):
        for start in range(0, index.table.num_rows, ROWS_AT_ONCE):
            rows = index.table[column].slice(start, ROWS_AT_ONCE)
            images.update(repr(rows.to_pylist()).encode())
    return images.hexdigest()[:16]


def _says(index: Index, column: str) -> bool:
    return bool(index.table[column].null_count < index.table.num_rows)


def _identity(config: TrainConfig, index: Index) -> dict[str, object]:
    section = config.embedding
    return {
        "name": config.name,
        "classes": list(index.classes),
        "images": digest_of_images(index),
        "backbone": config.network.backbone,
        "freeze": config.network.freeze,
        "reads_stages": config.network.reads_stages,
        "hidden_units": config.network.hidden_units,
        "preprocess": config.preprocess.model_dump(mode="json"),
        "weights": config.network.weights,
        "num_views": config.network.num_views,
        "augment": config.augment.model_dump(mode="json"),
        "balance": config.balance,
        "embedding": "" if section is None else section.model_dump(mode="json"),
        "batch_size": config.batch_size,
        "seed": config.seed,
        # by which a run goes on in mid-epoch; with `auto` it changes with where the images are
        "shuffle": shuffle_of(config, index),
        # what a checkpoint's optimiser and schedule have counted with
        "optimiser": config.optimiser.kind,
        "has_layer_decay": config.optimiser.layer_decay < 1,
        "accumulate": config.accumulate,
        "loss": config.loss.model_dump(mode="json"),
        "monitor": config.monitor,  # by which the best checkpoint was chosen
    }
