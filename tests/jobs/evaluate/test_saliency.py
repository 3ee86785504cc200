"""What an answer depends on is where hiding it changes the answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jobs.evaluate.saliency import occlude, overlay
from models.bundle import open_bundle
from models.predictor import Predictor, open_predictor
from tests.bundles import tiny_bundle

SIZE = 64
OWNERS = np.array([0, 1], np.intp)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Predictor]:
    """A tiny network of two classes."""
    folder: Path = tmp_path_factory.mktemp("saliency")
    predictor = open_predictor(open_bundle(tiny_bundle(folder, size=SIZE), cache=folder / "cache"))
    yield predictor
    predictor.close()


def test_the_part_that_decides_is_the_warmest(predictor: Predictor) -> None:
    image = np.full((SIZE, SIZE, 3), 128, np.uint8)
    # The rest is plain grey: all that the network sees lies in one corner.
    image[48:, 48:] = (255, 0, 0)
    probabilities = predictor.predict(image[None]).probabilities
    plain = predictor.predict(np.full_like(image, 128)[None]).probabilities
    assert probabilities is not None
    assert plain is not None
    favoured = int((probabilities - plain)[0].argmax())
    seen = occlude(predictor, image, OWNERS, favoured, 4)
    assert int(seen.heat.argmax()) == 15  # the last cell, in the corner
    assert seen.heat.max() == 1.0
    assert seen.heat[:2, :2].max() < 0.2
    assert seen.probability == pytest.approx(float(probabilities[0, favoured]), abs=1e-3)
    assert seen.lowest < seen.probability


def test_outputs_of_one_label_count_together(predictor: Predictor) -> None:
    image = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    seen = occlude(predictor, image, np.zeros(2, np.intp), 0, 2)
    assert seen.probability == pytest.approx(1.0)
    assert seen.lowest == pytest.approx(1.0)


def test_a_warm_cell_is_painted_and_a_cold_one_is_left_grey() -> None:
    image = np.random.default_rng(2).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    heat = np.zeros((4, 4))
    heat[0, 0] = 1.0
    painted = overlay(image, heat).astype(int)
    assert painted.shape == image.shape
    assert (painted[:8, :8, 0] - painted[:8, :8, 2]).mean() > 60
    cold = painted[40:, 40:]
    assert (cold.max(axis=2) - cold.min(axis=2)).max() <= 1
