"""Checkpoints of a run: the last and the best, in a folder or a bucket, safe against being cut
short.

The state goes first, under a new name; `last.json` and `best.json` go after it and carry its size
and SHA-256. They are the commit: a process killed in between leaves the previous checkpoint whole
and in force. States that neither names are removed. Loading runs no code (`weights_only`).
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from models.errors import NotFoundError, StorageError
from models.storage import Store

Which = Literal["last", "best"]
WHICH: tuple[Which, ...] = ("last", "best")
State = dict[str, Any]


@dataclass(frozen=True)
class CheckpointInfo:
    """What a pointer file says: where the state is, and the epoch to go on with."""

    path: str
    bytes: int
    sha256: str
    next_epoch: int
    score: float


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, below one store."""

    store: Store

    def save(self, state: State, *, next_epoch: int, score: float, is_best: bool) -> None:
        """Write the state of a finished epoch as the last checkpoint, and as the best if it is."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        data = buffer.getvalue()
        path = f"epoch-{next_epoch:05d}.pt"
        self.store.write(path, data)
        digest = hashlib.sha256(data).hexdigest()
        info = CheckpointInfo(path, len(data), digest, next_epoch, score)
        pointer = json.dumps(asdict(info), indent=2).encode()
        if is_best:
            self.store.write("best.json", pointer)
        self.store.write("last.json", pointer)
        self._prune()

    def find(self, which: Which) -> CheckpointInfo | None:
        """Return what the pointer says, or None if there is no such checkpoint yet."""
        try:
            data = self.store.read(f"{which}.json")
        except NotFoundError:
            return None
        try:
            return CheckpointInfo(**json.loads(data))
        except (TypeError, ValueError) as error:
            raise StorageError(
                f"{self.store.uri}/{which}.json is damaged ({error}); delete it to start the run "
                "anew"
            ) from error

    def load(self, which: Which) -> State | None:
        """Return the state, or None if there is none yet.

        Raises `StorageError` if its bytes are not what the pointer says, for example cut short.
        """
        info = self.find(which)
        if info is None:
            return None
        data = self.store.read(info.path)
        if len(data) != info.bytes or hashlib.sha256(data).hexdigest() != info.sha256:
            raise StorageError(
                f"checkpoint {self.store.uri}/{info.path} is damaged: {len(data):,} bytes of "
                f"{info.bytes:,} expected, "
                "or a different SHA-256. Give the run another name to start anew, or delete "
                f"{which}.json"
            )
        state: State = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return state

    def _prune(self) -> None:
        kept = {info.path for which in WHICH if (info := self.find(which)) is not None}
        for entry in self.store.list():
            if entry.key.startswith("epoch-") and entry.key not in kept:
                self.store.delete(entry.key)
