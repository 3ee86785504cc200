"""Settings that do nothing are said, and those that do something are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.config import load_config
from jobs.train.config import TrainConfig
from jobs.train.idle import OF_FINE_TUNING, idle_settings
from tests.jobs.train.test_loop import make_config
from tests.jobs.train.test_train_config import CONFIGS

FROZEN: dict[str, Any] = {"freeze": "backbone"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_no_setting_of_a_shipped_configuration_is_idle(path: Path) -> None:
    assert idle_settings(load_config(TrainConfig, path, [])) == []


def test_augmenting_the_one_view_of_a_frozen_backbone_is_said() -> None:
    (note,) = idle_settings(make_config(network=FROZEN, augment={"hue": 0.1}, **quiet()))
    assert "network.num_views to 2 or more" in note
    two = make_config(network={**FROZEN, "num_views": 2}, augment={"hue": 0.1}, **quiet())
    assert idle_settings(two) == []
    assert idle_settings(make_config(augment={"hue": 0.1})) == []


def test_mixing_features_is_said() -> None:
    config = make_config(
        network={**FROZEN, "num_views": 2}, augment={"cutmix_alpha": 1.0}, **quiet()
    )
    (note,) = idle_settings(config)
    assert "augment.mixup_alpha and cutmix_alpha do nothing" in note


def test_what_only_fine_tuning_uses_is_listed_beside_a_frozen_backbone() -> None:
    changes: dict[str, Any] = {
        "accumulate": 2,
        "batch_size": 16,
        "checkpoint": {"every_seconds": 30.0, "every_steps": 5},
        "compile": True,
        "data": {"uri": "images", "cache_gib": 1.0},
        "network": {"drop_path": 0.1},
        "optimiser": {"backbone_lr_scale": 0.5, "ema_decay": 0.9, "layer_decay": 0.9},
        "precision": "bf16",
        "preprocess": {"height": 64, "width": 64},
        "progressive": {"start_size": 32, "epochs": 1},
        "tracking": {"sample_ids": True},
    }
    assert idle_settings(make_config(**changes)) == []
    (note,) = idle_settings(make_config(**{**changes, "network": {"drop_path": 0.1, **FROZEN}}))
    assert note.startswith(", ".join(OF_FINE_TUNING))


@pytest.mark.parametrize(
    ("settings", "name", "switch"),
    [
        ({"blur_sigma": 1.0}, "blur_sigma", {"blur": 0.5}),
        ({"erase_area": 0.1}, "erase_area", {"erase": 0.5}),
        ({"randaugment_magnitude": 5}, "randaugment_magnitude", {"randaugment_ops": 1}),
        ({"mix_probability": 0.5}, "mix_probability", {"mixup_alpha": 0.2}),
    ],
)
def test_a_strength_of_something_that_is_off_is_said(
    settings: dict[str, float], name: str, switch: dict[str, float]
) -> None:
    (note,) = idle_settings(make_config(augment=settings))
    assert note.startswith(f"augment.{name} does nothing")
    assert idle_settings(make_config(augment={**settings, **switch})) == []


def test_views_of_a_backbone_that_is_trained_are_said() -> None:
    (note,) = idle_settings(make_config(network={"num_views": 3}))
    assert note.startswith("network.num_views 3 does nothing")


def quiet() -> dict[str, Any]:
    """Return what `make_config` changes of fine-tuning, as it is by default."""
    return {"batch_size": 64, "optimiser": {}}
