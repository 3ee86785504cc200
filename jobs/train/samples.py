"""Which images every step of every worker was given, as proof that none is passed over and none
seen twice: `<runs>/<run>/samples/<worker>-<process>.jsonl`, written before the step is taken. Where
the runs are in a bucket, `tracking.sample_ids` names a folder to take its place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from jobs.data.streams import Batch
from jobs.train.borders import Place
from models.errors import ConfigError
from models.storage import Store, is_remote

FOLDER = "samples"

Steps = dict[tuple[int, int], list[int]]  # by epoch and position: ids


def recorded(
    batches: Iterator[Batch], store: Store, place: Place, epoch: int, start: int, batch_size: int
) -> Iterator[Batch]:
    """Pass batches on, and append to a file of this process what is in them.

    A line has the epoch (from 0), the position in the order of the epoch, in images of all workers,
    and the rows of the split. A step that was taken back by a kill occurs once more.
    Raises `ConfigError` for a bucket, which cannot append.
    """
    check_recordable(store.uri)
    folder = Path(store.uri) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{place.rank}-{os.getpid()}.jsonl").open("a") as file:
        for number, batch in enumerate(batches):
            position = start + number * batch_size * place.world + place.rank * batch_size
            line = {"epoch": epoch, "position": position, "ids": batch.ids.tolist()}
            file.write(json.dumps(line) + "\n")
            file.flush()
            yield batch


def check_recordable(uri: str) -> None:
    """Raise `ConfigError` where lines cannot be appended."""
    if is_remote(uri):
        raise ConfigError(
            f"tracking.sample_ids writes lines one by one, which a bucket cannot take: {uri}; give "
            "a folder as `runs`, name one in tracking.sample_ids, or leave it off"
        )


def read_samples(folder: Path) -> Steps:
    """Return what all workers of all attempts of a run were given.

    Raises `ValueError` if a step that was done again had other images than the first time.
    """
    steps: Steps = {}
    for path in sorted((folder / FOLDER).glob("*.jsonl")):
        for line in path.read_text().splitlines(keepends=True):
            if not line.endswith("\n"):  # cut by a kill, before its step was taken
                continue
            step = json.loads(line)
            key = (step["epoch"], step["position"])
            if steps.setdefault(key, step["ids"]) != step["ids"]:
                raise ValueError(f"{path}: {key} had {steps[key]} before, and {step['ids']} now")
    return steps
