"""The other replicas of a model, as one replica sees them: to be told of new labels, to be counted
together, and the versions that are served beside this one.

`Alone` is a replica without any, as in tests and benchmarks that start no Serve; `serve_peers` asks
Serve. It knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from serve_app.model import ServedModel
from serve_app.statistics import Counters


@dataclass(frozen=True)
class Confirmed:
    """How many replicas were told of a revision, and how many have it now."""

    asked: int
    confirmed: int


class Peers(Protocol):
    """All replicas of one application, this one among them."""

    async def refresh_labels(self, revision: int) -> Confirmed:
        """Let all look into the log of their labels; says how many are at that revision after."""
        ...

    async def statistics(self) -> Sequence[Counters]:
        """Return the counters of each."""
        ...

    async def versions(self) -> Sequence[int]:
        """Return the versions of this model that are served, ascending."""
        ...


class Alone:
    """One replica that has no others."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model

    async def refresh_labels(self, revision: int) -> Confirmed:
        """Look into the log."""
        return Confirmed(1, int(await self._model.labels.refreshed() >= revision))

    async def statistics(self) -> Sequence[Counters]:
        """Return its own counters."""
        return (self._model.statistics.counters(),)

    async def versions(self) -> Sequence[int]:
        """Return its own version."""
        return (self._model.manifest.version,)
