"""How much is read, how often, and what is read at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.ingest.consume import Window

BATCH_SIZE = 64
NUM_FINALISTS = 2  # layouts of several processes that are measured in every repetition
SIGHTLINE = "Sightline"
PACKED, LOOSE = "Sightline, packed", "Sightline, files"


@dataclass(frozen=True)
class Pace:
    """Images and repetitions."""

    num_images: int  # of the set
    window: Window
    trial: Window  # with which the number of workers is chosen
    repetitions: int
    ceiling_seconds: float
    screening_seconds: float
    memory_sizes: tuple[int, ...]
    memory_images: int  # read at least, in as many epochs as it takes
    memory_repetitions: int
    is_whole: bool  # with every way and several numbers of workers


QUICK = Pace(
    *(12_000, Window(1_000, 4_000), Window(256, 512), 2, 2, 1),
    *((2_000, 20_000), 20_000, 1, False),
)
FULL = Pace(
    *(26_000, Window(3_000, 20_000), Window(1_000, 3_000), 5, 6, 3),
    *((2_000, 20_000, 200_000), 100_000, 3, True),
)


@dataclass(frozen=True)
class Entry:
    """One line of the table: a library in one way."""

    name: str
    module: str
    way: str
    folder: str  # of the set: `loose`, `packed` or `tars`
    library: str
    environment: str | None = None  # one of `ENVIRONMENTS`; None: this one
    options: Mapping[str, Any] = field(default_factory=dict)
    has_workers: bool = True  # whose best number is to be found
    is_remote: bool = False
    is_quick: bool = False


@dataclass(frozen=True)
class Environment:
    """What is installed for a library. Torch and Ray are those of this process, which it sees
    behind its own packages: gigabytes, and the same for all.
    """

    package: str  # whose version stands for it
    requirements: tuple[str, ...]
    pinned: tuple[str, ...] = ()  # packages in the version of this process, which torch fits


ENVIRONMENTS = {
    "webdataset": Environment("webdataset", ("webdataset",), ("numpy",)),
    "datasets": Environment("datasets", ("datasets",), ("numpy", "pyarrow", "pillow")),
}


def _sightline(name: str, folder: str, **given: Any) -> Entry:
    options = {
        "source": "folder" if folder == "loose" else "packed",
        "shuffle": given.pop("shuffle", "auto"),
        "named": True,
    }
    return Entry(
        name, "sightline", "auto", folder, SIGHTLINE, options=options, has_workers=False, **given
    )


ENTRIES = (
    _sightline(PACKED, "packed", is_quick=True),
    _sightline(LOOSE, "loose", is_quick=True),
    _sightline(f"{PACKED}, shuffled by runs", "packed", shuffle="runs"),
    _sightline(f"{PACKED}, S3", "packed", is_remote=True, is_quick=True),
    _sightline(f"{PACKED}, S3, shuffled by images", "packed", shuffle="images", is_remote=True),
    _sightline(f"{LOOSE}, S3", "loose", is_remote=True),
    Entry("torch DataLoader", "torch_files", "same", "loose", "torch", is_quick=True),
    Entry("torch DataLoader, its own way", "torch_files", "own", "loose", "torch"),
    Entry(
        *("WebDataset", "webdataset_tars", "same", "tars", "webdataset", "webdataset"),
        is_quick=True,
    ),
    Entry("WebDataset, its own way", "webdataset_tars", "own", "tars", "webdataset", "webdataset"),
    Entry(
        *("HF datasets", "datasets_parquet", "same", "packed", "datasets", "datasets"),
        is_quick=True,
    ),
    Entry("HF datasets, its own way", "datasets_parquet", "own", "packed", "datasets", "datasets"),
    Entry(
        *("HF datasets, streaming", "datasets_parquet", "streaming", "packed", "datasets"),
        "datasets",
    ),
    Entry(
        "Ray Data, read_parquet",
        *("ray_data", "parquet", "packed", "ray"),
        options={"buffer": 1000, "reads_far_ahead": True},
        is_quick=True,
    ),
    Entry(
        "Ray Data, read_parquet, only files shuffled",
        *("ray_data", "parquet", "packed", "ray"),
        options={"reads_far_ahead": True},
    ),
    Entry(
        "Ray Data, read_images",
        *("ray_data", "images", "loose", "ray"),
        options={"reads_far_ahead": True},
    ),
)


@dataclass(frozen=True)
class Setting:
    """What is measured, and with which images."""

    images: Path | None
    source: str
    pace: Pace
    names: tuple[str, ...]

    @property
    def entries(self) -> list[Entry]:
        """The lines that are measured."""
        return [entry for entry in ENTRIES if entry.name in self.names]

    def facts(self) -> dict[str, Any]:
        """Return what must be the same for steps of two runs to be one run."""
        return {"images": self.source, "pace": asdict(self.pace), "names": self.names}
