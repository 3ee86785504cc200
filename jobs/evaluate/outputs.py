"""Put a bundle to the images of a split, through an engine that serves it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.environment import usable_cores
from jobs.console import Advance
from jobs.data.streams import IndexedImages
from models.bundle import Bundle
from models.engines.base import EngineOptions
from models.errors import ConfigError, DataError
from models.predictor import Predictor, open_predictor

BATCH = 32
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclass(frozen=True)
class Outputs:
    """What a model said of N images of a split, in the order of their rows."""

    probabilities: npt.NDArray[np.float32]  # (N, C), rows sum to 1
    truth: npt.NDArray[np.int64]  # (N,)
    rows: npt.NDArray[np.int64]  # (N,), positions in the split
    brightness: npt.NDArray[np.float32]  # (N,), mean luma of what the model saw, 0 to 255
    engine: str  # that answered, and its precision and device

    def at(self, places: npt.NDArray[np.intp]) -> Outputs:
        """Return the outputs at some positions."""
        return Outputs(
            self.probabilities[places],
            self.truth[places],
            self.rows[places],
            self.brightness[places],
            self.engine,
        )


def collect(
    bundle: Bundle,
    images: IndexedImages,
    split: str,
    advance: Advance,
    options: EngineOptions | None = None,
) -> Outputs:
    """Return what a bundle says of every image of a split. Needs a running Ray.

    Raises `DataError` for a split without images, or with too many that cannot be read any more
    (`data.max_broken_share`), and `EngineError` where no engine serves the bundle here.
    """
    if not images.num_images(split):
        raise DataError(f"there is no image in the split {split!r} to judge a model by")
    options = options or EngineOptions(threads=usable_cores())
    predictor = open_predictor(bundle, options)
    try:
        return _collect(predictor, images, split, advance)
    finally:
        predictor.close()


def _collect(predictor: Predictor, images: IndexedImages, split: str, advance: Advance) -> Outputs:
    parts: list[tuple[npt.NDArray[np.float32], ...]] = []
    numbers: list[tuple[npt.NDArray[np.int64], ...]] = []
    for batch in images.batches(split, batch_size=BATCH, shuffle=False):
        probabilities = predictor.predict(batch.images).probabilities
        if probabilities is None:
            raise ConfigError(
                f"{predictor.manifest.label} is of kind {predictor.kind.name}, which has no "
                "classes to judge"
            )
        brightness = batch.images.mean(axis=(1, 2), dtype=np.float32) @ LUMA
        parts.append((probabilities, brightness))
        numbers.append((batch.labels, batch.ids))
        advance(len(batch.labels))
    engine = predictor.engine
    return Outputs(
        np.concatenate([part[0] for part in parts]),
        np.concatenate([part[0] for part in numbers]),
        np.concatenate([part[1] for part in numbers]),
        np.concatenate([part[1] for part in parts]),
        f"{engine.name} {engine.precision} on {engine.device}",
    )
