"""What an engine gives that is no number is nobody's label."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from models.bundle import open_bundle
from models.engines.base import Feeding, Images, Outputs
from models.errors import EngineError
from models.predictor import Predictor, open_predictor
from serve_app.feeding import open_feeder
from serve_app.statistics import Statistics
from tests.bundles import tiny_bundle

SIZE = 32


class Overflowing:
    """An engine that cannot do with one image: the black one."""

    name, precision, device = "overflowing", "fp16", "cpu"

    def __init__(self, mode: str) -> None:
        self.feeding = Feeding(mode, parallel=1, max_batch=8)  # type: ignore[arg-type]

    def run(self, images: Images) -> Outputs:
        """Answer the first class."""
        bad = images.reshape(len(images), -1).max(axis=1) == 0
        probabilities = np.tile(np.array([0.9, 0.1], np.float32), (len(images), 1))
        probabilities[bad] = np.nan
        embedding = np.tile(np.eye(1, 8, dtype=np.float32), (len(images), 1))
        return {"probabilities": probabilities, "embedding": embedding}

    def close(self) -> None: ...


@pytest.mark.parametrize("mode", ["streams", "batches"])
def test_one_image_fails_and_those_beside_it_are_answered(mode: str, tmp_path: Path) -> None:
    opened = open_predictor(open_bundle(tiny_bundle(tmp_path, size=SIZE)))
    predictor = Predictor(opened.bundle, Overflowing(mode), opened.proof, ())
    images = [np.full((SIZE, SIZE, 3), value, np.uint8) for value in (10, 0, 20)]

    async def score() -> list[object]:
        feeder = open_feeder(predictor, num_threads=1, wait_seconds=0.05, statistics=Statistics())
        try:
            return list(await asyncio.gather(*map(feeder.run, images), return_exceptions=True))
        finally:
            feeder.close()

    first, bad, last = asyncio.run(score())
    assert isinstance(bad, EngineError)
    assert "no finite numbers" in str(bad)
    for found in (first, last):
        assert np.allclose(found.probabilities, [0.9, 0.1])  # type: ignore[attr-defined]
    predictor.close()
    opened.close()
