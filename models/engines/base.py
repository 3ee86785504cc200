"""The engines' protocol, and the table from a name to the module that implements it.

An engine runs one exported graph and knows nothing of labels, files or HTTP. Its library is
imported only when it is opened; a missing one is answered with the extra to install.

Shape legend: N images, H x W input pixels, C classes, D features.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from models.bundle import Bundle
from models.errors import ConfigError, EngineError
from models.stopwatch import part

Images = npt.NDArray[np.uint8]  # (N, H, W, 3), RGB
Outputs = dict[str, npt.NDArray[np.float32]]  # "probabilities" (N, C), "embedding" (N, D)


@dataclass(frozen=True)
class Feeding:
    """How an engine likes to be fed.

    `streams`: `parallel` calls of one image each at the same time (batching only adds delay).
    `batches`: one call at a time with up to `max_batch` images.
    """

    mode: Literal["streams", "batches"]
    parallel: int
    max_batch: int


class EngineOptions(BaseModel):
    """Which engines to try, in order, and what they may use."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engines: tuple[str, ...] = Field(("openvino", "torch"), min_length=1)
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    threads: int | None = Field(
        None, ge=1, description="CPU threads; all this process may use if unset"
    )

    @property
    def num_threads(self) -> int:
        """CPU threads to use: as configured, else the cores that this process may run on. What time
        of them a container may use is the caller's to know.
        """
        return self.threads or len(os.sched_getaffinity(0))


class Engine(Protocol):
    """What runs images. `run` may be called from many threads at once."""

    name: str
    precision: str
    device: str
    feeding: Feeding

    def run(self, images: Images) -> Outputs:
        """Run uint8 images (N, H, W, 3) and return float32 outputs by name."""
        ...

    def close(self) -> None:
        """Free what the engine holds; it cannot be run afterwards."""
        ...


class EngineModule(Protocol):
    """What a module in the table provides."""

    def precisions(self, options: EngineOptions) -> Sequence[str]:
        """Return the precisions worth trying on this machine, from the coarsest to the finest."""
        ...

    def open_engine(self, bundle: Bundle, precision: str, options: EngineOptions) -> Engine:
        """Load the bundle's artifact. Raises `EngineError` with the reason if it cannot run
        here.
        """
        ...


@dataclass(frozen=True)
class EngineEntry:
    """One row of the table."""

    module: str
    library: str  # imported by the module; looked for to answer with the extra
    extra: str  # what to install with pip when the library is missing


ENGINES: dict[str, EngineEntry] = {
    "openvino": EngineEntry("models.engines.openvino_engine", "openvino", "sightline"),
    "torch": EngineEntry("models.engines.torch_engine", "torch", "sightline"),
}


def find_engine(name: str) -> EngineModule:
    """Return the module of an engine. Raises `ConfigError` (unknown name) or `EngineError` (library
    missing).
    """
    entry = ENGINES.get(name)
    if entry is None:
        raise ConfigError(f"unknown engine {name!r}; expected one of {', '.join(ENGINES)}")
    try:
        with part("imports"):
            importlib.import_module(entry.library)
            return cast(EngineModule, importlib.import_module(entry.module))
    except ImportError as error:
        raise EngineError(
            f"engine {name!r} needs the library {entry.library!r} ({error}): pip install "
            f"'{entry.extra}'"
        ) from error


def engine_artifact(bundle: Bundle, engine: str) -> str:
    """Return the path of the artifact that an engine runs, or raise `EngineError`."""
    for artifact in bundle.manifest.artifacts:
        if artifact.engine == engine:
            return artifact.path
    raise EngineError(f"bundle {bundle.manifest.label} has no artifact for the engine {engine!r}")
