"""How much is trained, how often, and in which ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PLAIN = "plain loop, decoded before"
PLAIN_KEEPING = "plain loop, freed memory kept"
OURS = "Sightline"
OURS_RAY = "Sightline, Ray Train"
LIGHTNING_PACKAGES = ("lightning",)
LIGHTNING_PINNED = ("numpy",)
NO_SCRIPT = (
    "timm's train.py is no part of the package on PyPI; give a copy of that version with "
    "--timm-train"
)


@dataclass(frozen=True)
class Pace:
    """Images and repetitions. The first of the epochs is warm-up and does not count."""

    num_images: int
    side: int  # pixels; multiples of 32
    batch_size: int  # over all workers
    epochs: int
    repetitions: int
    worker_counts: tuple[int, ...]  # of Ray Train


QUICK = Pace(256, 128, 32, 3, 2, (1,))
FULL = Pace(1_024, 224, 32, 3, 5, (1, 2, 4))


@dataclass(frozen=True)
class Entry:
    """One line of the table."""

    name: str
    module: str  # below `ways`
    workers: int = 0  # of Ray Train
    folder: str = "packed"  # of the set: `loose` or `packed`
    environment: str | None = None
    is_quick: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)


def entries(pace: Pace, timm_script: Path | None) -> tuple[Entry, ...]:
    """Return every way there is, the plain loop first."""
    with_ray = tuple(
        Entry(_workers(count), "sightline", count, is_quick=count == 1)
        for count in pace.worker_counts
    )
    script = {} if timm_script is None else {"script": str(timm_script)}
    return (
        Entry(PLAIN, "plain", folder="loose"),
        # what the same loop would be with this one setting of ours
        Entry(PLAIN_KEEPING, "plain", folder="loose", options={"keeps_freed_memory": True}),
        Entry(OURS, "sightline"),
        Entry(f"{OURS}, no image kept", "sightline", options={"cache_gib": 0}),
        Entry(f"{OURS}, files", "sightline", folder="loose", is_quick=False),
        *with_ray,
        Entry(f"{OURS}, a checkpoint each step", "sightline", options={"every_steps": 1}),
        Entry("torch DataLoader, plain loop", "dataloader", folder="loose"),
        Entry("Lightning", "lightning_module", folder="loose", environment="lightning"),
        Entry("timm train.py", "timm_script", folder="loose", options=script),
    )


def _workers(count: int) -> str:
    return f"{OURS_RAY}, {count} worker{'s' if count > 1 else ''}"


@dataclass(frozen=True)
class Setting:
    """What is measured, and with which images."""

    source: str
    backbone: str
    pace: Pace
    entries: tuple[Entry, ...]

    def facts(self) -> dict[str, Any]:
        """Return what must be the same for steps of two runs to be one run."""
        return {
            "images": self.source,
            "backbone": self.backbone,
            "pace": asdict(self.pace),
            "names": [entry.name for entry in self.entries],
        }
