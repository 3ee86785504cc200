"""Checkpoints of a run, in a folder or a bucket, safe against being cut short at any moment.

Each is a state and a marker: `00003-0000120-a1b2c3.pt` goes first, the `.json` of the same name
after it, with the size and SHA-256 of the state. A state without a marker does not count. The last
checkpoint is the one furthest on (epoch, step), whoever wrote it; `best.json` is a copy of the
marker of the best epoch. Names are never used twice, so a checkpoint is whole or not there, and a
process that should be dead cannot damage one. Loading runs no code (`weights_only`).
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from models.errors import NotFoundError, StorageError
from models.storage import Store, is_remote

logger = logging.getLogger(__name__)

Which = Literal["last", "best"]
State = dict[str, Any]
BEST = "best.json"
OLD_LAST = "last.json"
STATE, MARKER = ".pt", ".json"


class DamagedError(StorageError):
    """The bytes of a checkpoint are not those that were written."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What a marker says: where the state is, and the epoch and step to go on with."""

    path: str
    bytes: int
    sha256: str
    next_epoch: int
    next_step: int = 0
    score: float | None = None  # of the epoch that ended with it; None in mid-epoch


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, below one store: the best and the last `keep` are kept."""

    store: Store
    keep: int = 2
    damaged: set[str] = field(default_factory=set, compare=False)  # names, found while loading

    def save(
        self,
        state: State,
        *,
        next_epoch: int,
        next_step: int = 0,
        score: float | None = None,
        is_best: bool = False,
    ) -> None:
        """Write a state as the last checkpoint, and as the best if it is; remove old ones."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        data = buffer.getvalue()
        name = f"{next_epoch:05d}-{next_step:08d}-{secrets.token_hex(4)}"
        self.store.write(name + STATE, data)
        digest = hashlib.sha256(data).hexdigest()
        info = CheckpointInfo(name + STATE, len(data), digest, next_epoch, next_step, score)
        marker = json.dumps(asdict(info), indent=2).encode()
        if is_best:
            self.store.write(BEST, marker)
        self.store.write(name + MARKER, marker)
        self._prune()

    def find(self, which: Which) -> CheckpointInfo | None:
        """Return what the marker says, or None if there is no such checkpoint yet."""
        if which == "last":
            return next(self._newest(), None)
        try:
            return _parse(self.store.read(BEST))
        except NotFoundError:
            return None
        except ValueError as error:
            raise StorageError(
                f"{self.store.uri}/{BEST} is damaged ({error}); delete it, and the best epoch is "
                "chosen among those to come"
            ) from error

    def load(self, which: Which) -> State | None:
        """Return the state, or None if there is none yet.

        A last one that is damaged is passed over, with a warning, for the one before it. Raises
        `StorageError` if there are some but none is whole, or the best one is not.
        """
        if which == "best":
            info = self.find("best")
            return None if info is None else self.read(info)
        found = self.load_last()
        return None if found is None else found[1]

    def load_last(self) -> tuple[CheckpointInfo, State] | None:
        """Return the last whole checkpoint, as `load`, with what its marker says."""
        failure: StorageError | None = None
        for info in self._newest():
            try:
                return info, self.read(info)
            except (DamagedError, NotFoundError) as error:
                logger.warning("%s; trying the one before it", error)
                self.damaged.add(info.path.removesuffix(STATE))
                failure = error
        if failure is not None:
            raise StorageError(
                f"no checkpoint in {self.store.uri} is whole. Give the run another name to start "
                f"anew, or delete that folder. The oldest one: {failure}"
            ) from failure
        return None

    def read(self, info: CheckpointInfo) -> State:
        """Return one state. Raises `DamagedError` if its bytes are not what the marker says."""
        data = self.store.read(info.path)
        if len(data) != info.bytes or hashlib.sha256(data).hexdigest() != info.sha256:
            raise DamagedError(
                f"checkpoint {self.store.uri}/{info.path} is damaged: {len(data):,} bytes of "
                f"{info.bytes:,} expected, or a different SHA-256"
            )
        state: State = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return state

    def withdraw(self, info: CheckpointInfo) -> None:
        """Remove a checkpoint that is whole and of no use; the one before it is the last then."""
        best = self.find("best")
        if best is not None and best.path == info.path:
            self.store.delete(BEST)
        name = info.path.removesuffix(STATE)
        for suffix in (MARKER, STATE):  # what has lost its marker does not count any more
            self.store.delete(name + suffix)

    def _newest(self) -> Iterator[CheckpointInfo]:
        """Yield what the markers say, the furthest first; those that say nothing are skipped."""
        for name in self._names(MARKER):
            try:
                yield _parse(self.store.read(name + MARKER))
            except NotFoundError:  # pruned meanwhile
                continue
            except ValueError as error:
                logger.warning("%s/%s%s is damaged (%s)", self.store.uri, name, MARKER, error)
                self.damaged.add(name)

    def _names(self, suffix: str) -> list[str]:
        """Return the names of checkpoints that have a file of this kind, the furthest first."""
        try:
            keys = [entry.key for entry in self.store.list()]
        except NotFoundError:
            return []
        if OLD_LAST in keys:
            raise StorageError(
                f"{self.store.uri}/{OLD_LAST} is of an older version of Sightline, which kept no "
                "step; give the run another name to start anew, or delete that folder"
            )
        names = (key.removesuffix(suffix) for key in keys if key.endswith(suffix) and key != BEST)
        return sorted(names, reverse=True)

    def _prune(self) -> None:
        whole = [name for name in self._names(MARKER) if name not in self.damaged]
        best = self.find("best")
        kept = {*whole[: self.keep], *([] if best is None else [best.path.removesuffix(STATE)])}
        for suffix in (MARKER, STATE):  # what has lost its marker does not count any more
            for name in self._names(suffix):
                if name not in kept:
                    self.store.delete(name + suffix)
        if not is_remote(self.store.uri):
            for left in Path(self.store.uri).glob("*#*"):  # by a write that was killed
                left.unlink(missing_ok=True)


def _parse(marker: bytes) -> CheckpointInfo:
    try:
        return CheckpointInfo(**json.loads(marker))
    except TypeError as error:
        raise ValueError(str(error)) from error
