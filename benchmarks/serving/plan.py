"""How long everything is measured, and what is measured at all."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.sightline import Layout

SHARES = (0.5, 0.8, 3.0)  # of the capacity, in an open loop
NUM_FINALISTS = 2  # layouts of the ceiling that are measured in every repetition


@dataclass(frozen=True)
class Pace:
    """Seconds and repetitions."""

    repetitions: int
    own_repetitions: int  # of peers in their own way, each beside Sightline
    screening_seconds: float  # of each layout of the ceiling
    ceiling_seconds: float
    load_seconds: float
    batch_seconds: float  # of requests with 16 images, of which the last ones leave a core idle
    own_seconds: float  # their batches take seconds
    rate_warm_up: float  # seconds: until the queue of an overloaded server is as long as it gets
    rate_seconds: float
    rate_repetitions: int  # of Sightline; peers are asked once
    connections: tuple[int, ...]
    own_connections: tuple[int, ...]
    is_whole: bool  # with every call and kind, other photos, and peers at fixed rates


QUICK = Pace(5, 1, 1, 2, 2, 6, 3, 3, 5, 1, (16,), (32,), is_whole=False)
FULL = Pace(5, 5, 3, 4, 5, 12, 6, 5, 8, 3, (16, 32), (16, 32), is_whole=True)


@dataclass(frozen=True)
class Setting:
    """What is measured, and how it is served."""

    bundle: str
    precision: str
    images: Path
    layout: Layout
    peers: tuple[str, ...]
    pace: Pace

    def facts(self) -> dict[str, Any]:
        """Return what must be the same for steps of two runs to be one run."""
        return {
            "bundle": self.bundle,
            "precision": self.precision,
            "layout": asdict(self.layout),
            "peers": self.peers,
            "pace": asdict(self.pace),
        }
