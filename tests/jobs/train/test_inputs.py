"""Backbones that take one size only, and such that keep the batch in their graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.train.config import TrainConfig
from jobs.train.features import FeatureWriter, open_extractor
from jobs.train.inputs import check_sizes
from jobs.train.network import FeatureNetwork, build_network
from models.errors import ConfigError

pytestmark = pytest.mark.slow  # torch has to be loaded


def config_of(size: int, freeze: str = "none", start_size: int | None = None) -> TrainConfig:
    """Return a training of a network that was made for 224 x 224."""
    return TrainConfig.model_validate(
        {
            "name": "x",
            "data": {"uri": "x"},
            "preprocess": {"height": size, "width": size},
            "network": {
                "backbone": "vit_tiny_patch16_224",
                "weights": "none",
                "freeze": freeze,
                "drop_path": 0.0,
            },
            "epochs": 4,
            "progressive": start_size and {"start_size": start_size, "epochs": 2},
        }
    )


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        (config_of(224), None),
        (config_of(160), "160 x 160"),
        (config_of(160, "backbone"), "160 x 160"),
        (config_of(224, "none", 160), "160 x 160"),
        (config_of(224, "backbone", 160), None),  # which sees no smaller ones
    ],
)
def test_a_size_that_the_backbone_refuses_is_told_before_images_are_read(
    config: TrainConfig, refused: str | None
) -> None:
    network = build_network("vit_tiny_patch16_224", 2)
    if refused is None:
        check_sizes(network, config)
    else:
        told = rf"takes no images of {refused} pixels: .*made for 224 x 224.*Set preprocess.height"
        with pytest.raises(ConfigError, match=told):
            check_sizes(network, config)


@pytest.mark.parametrize(
    ("backbone", "size"), [("vit_tiny_patch16_224", 224), ("mobilevit_xxs", 128)]
)
def test_features_come_of_any_number_of_images_of_the_networks_size(
    backbone: str, size: int
) -> None:
    network = build_network(backbone, 2)
    images = np.random.default_rng(0).integers(0, 256, (5, size, size, 3), dtype=np.uint8)
    with open_extractor(network, torch.device("cpu"), 1) as extract:
        found = [extract(images), extract(images[:3])]
    with torch.inference_mode():
        expected = FeatureNetwork(network).eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found[0], expected, atol=1e-4)
    np.testing.assert_allclose(found[1], expected[:3], atol=1e-4)


def test_features_without_an_image_of_theirs_are_refused(tmp_path: Path) -> None:
    writer = FeatureWriter(tmp_path / "features")
    with pytest.raises(ConfigError, match="gave 3 rows of features for 4 images"):
        writer.append(np.zeros((3, 2), np.float32), torch.zeros(4, dtype=torch.int64))
