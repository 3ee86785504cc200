"""`metrics.jsonl` in the folder of a run: a line every few steps and one per epoch.

A run that goes on reads it back and drops what is beyond its position, so the file of a run that
was interrupted has the same lines as that of one that was not. It is written whole, by a thread: on
a disk with each line, to a bucket, which cannot append, at most every few seconds, so that there a
run that is killed loses the lines since. A store that refuses it ends no training.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from typing import Any

from jobs.train.borders import Watcher
from jobs.train.history import EpochRecord
from jobs.train.position import Tally
from models.errors import NotFoundError, StorageError
from models.storage import Store, is_remote

logger = logging.getLogger(__name__)

FILE = "metrics.jsonl"
SECONDS_BETWEEN = 10.0
SECONDS_TO_CLOSE = 10.0


class MetricsLog(Watcher):
    """Of the first worker. Epochs and steps are counted from 1 in the file."""

    def __init__(self, store: Store, every_steps: int, world: int) -> None:
        self._store, self._every, self._world = store, every_steps, world
        self._lines: list[bytes] = []
        self._epoch, self._step = 0, 0
        self._has_begun = False  # before that the lines of an earlier run are not known
        self._since = _Since()
        self._written = time.monotonic()
        self._changed = threading.Condition()
        self._content: list[bytes] | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="metrics", daemon=True)
        self._thread.start()

    def begin(self, tally: Tally, done: int, total: int) -> None:
        """Take over the lines of an earlier run, as far as this one goes on from it."""
        self._epoch, self._step = tally.epoch, tally.step
        self._has_begun = True
        self._lines = [_dump(line) for line in self._read() if _is_before(line, tally)]
        self._since = _Since()

    def step(self, num_images: int, loss: float, waited: float = 0.0) -> None:
        """Write a line, where it is time for one; features that are computed are no steps."""
        if math.isnan(loss):
            return
        self._step += 1
        self._since.add(num_images * self._world, loss, waited)
        if self._step % self._every == 0:
            place = {"epoch": self._epoch + 1, "step": self._step}
            self._lines.append(_dump(place | self._since.figures()))
            self._since = _Since()
            if not is_remote(self._store.uri):
                self._write()
        if time.monotonic() - self._written >= SECONDS_BETWEEN:
            self._write()

    def epoch(self, record: EpochRecord) -> None:
        """Write the figures of the epoch."""
        figures = {
            "train_loss": record.train_loss,
            "images_per_second": round(record.images_per_second, 2),
            "waiting_share": round(record.waiting_share, 4),
        }
        validation = {f"validation_{k}": v for k, v in (record.validation or {}).items()}
        self._lines.append(_dump({"epoch": record.epoch + 1, **figures, **validation}))
        self._epoch, self._step, self._since = record.epoch + 1, 0, _Since()
        self._write()

    def close(self) -> None:
        """Write what is left, within a few seconds."""
        if self._has_begun or self._lines:
            self._write()
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(SECONDS_TO_CLOSE)

    def _read(self) -> list[dict[str, Any]]:
        try:
            text = self._store.read(FILE).decode()
            return [json.loads(line) for line in text.splitlines()]
        except NotFoundError:
            return []
        except (StorageError, ValueError) as error:
            logger.warning("%s/%s cannot be read and begins anew: %s", self._store.uri, FILE, error)
            return []

    def _write(self) -> None:
        self._written = time.monotonic()
        with self._changed:
            self._content = list(self._lines)  # the thread puts them together
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._content is not None or self._is_closed)
                content, self._content = self._content, None
            if content is None:
                return
            try:
                self._store.write(FILE, b"".join(content))
            except StorageError as error:
                logger.warning("%s is not up to date: %s", FILE, error)


class _Since:
    """What was seen since the last line."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._steps, self._num_images, self._loss, self._waited = 0, 0, 0.0, 0.0

    def add(self, num_images: int, loss: float, waited: float) -> None:
        self._steps += 1
        self._num_images += num_images
        self._loss += loss
        self._waited += waited

    def figures(self) -> dict[str, float]:
        seconds = max(time.monotonic() - self._started, 1e-9)
        return {
            "loss": self._loss / max(1, self._steps),
            "images_per_second": round(self._num_images / seconds, 2),
            "waiting_share": round(min(1.0, self._waited / seconds), 4),
        }


def _dump(line: dict[str, Any]) -> bytes:
    return f"{json.dumps(line)}\n".encode()


def _is_before(line: dict[str, Any], tally: Tally) -> bool:
    if "step" in line:
        return (line["epoch"], line["step"]) <= (tally.epoch + 1, tally.step)
    return bool(line["epoch"] <= tally.epoch)
