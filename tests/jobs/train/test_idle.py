"""Settings that do nothing are said, and those that do something are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.config import load_config
from jobs.train.config import TrainConfig
from jobs.train.idle import OF_FINE_TUNING, idle_settings, idle_with_images
from tests.jobs.train.test_identity import make_index
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


def test_views_that_are_all_the_same_are_said() -> None:
    (note,) = idle_settings(make_config(network={**FROZEN, "num_views": 4}, **quiet()))
    assert "computes the same view 4 times" in note


def test_patience_that_outlasts_the_epochs_that_count_is_said() -> None:
    size: dict[str, Any] = {"preprocess": {"height": 64, "width": 64}, "epochs": 10}
    growing = {**size, "progressive": {"start_size": 32, "epochs": 6}}
    for patience, settings, is_idle in ((3, growing, True), (2, growing, False), (9, size, True)):
        notes = idle_settings(make_config(early_stop_epochs=patience, **settings))
        assert bool(notes) == is_idle
    assert notes[0].startswith("early_stop_epochs 9 does nothing with 10 epochs")


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
        "data": {"uri": "images", "cache_gib": 1.0, "shuffle": "images"},
        "network": {"drop_path": 0.1},
        "optimiser": {"backbone_lr_scale": 0.5, "ema_decay": 0.9, "layer_decay": 0.9},
        "precision": "bf16",
        "preprocess": {"height": 64, "width": 64},
        "progressive": {"start_size": 32, "epochs": 1},
        "tracking": {"every_steps": 5, "sample_ids": True},
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


EMBEDDING: dict[str, Any] = {"kind": "embedding", "monitor": "recall_at_1"}


@pytest.mark.parametrize("objective", ["arcface", "cosface"])
def test_images_side_by_side_are_said_where_no_pairs_are_needed(objective: str) -> None:
    group = {"images_per_class": 8}
    (note,) = idle_settings(make_config(**EMBEDDING, embedding={"objective": objective, **group}))
    assert note.startswith("embedding.images_per_class 8 does nothing")
    assert idle_settings(make_config(**EMBEDDING, embedding={"objective": "supcon", **group})) == []


def test_pictures_of_mistakes_that_vectors_do_not_make_are_said() -> None:
    pictures = {"num_report_pictures": 0}
    (note,) = idle_settings(make_config(**EMBEDDING, export=pictures))
    assert note.startswith("export.num_report_pictures does nothing")
    assert idle_settings(make_config(export=pictures)) == []


def test_cpus_of_no_worker_are_said_but_for_a_trial() -> None:
    config = make_config(workers={"cpus_per_worker": 2})
    (note,) = idle_settings(config)
    assert note.startswith("workers.cpus_per_worker 2 does nothing")
    assert idle_settings(config, is_trial=True) == []
    assert idle_settings(make_config(workers={"cpus_per_worker": 2, "num_workers": 1})) == []


def test_patience_without_validation_images_is_said() -> None:
    (note,) = idle_with_images(make_config(early_stop_epochs=2), make_index())
    assert note.startswith("early_stop_epochs 2 does nothing")
    seen = make_index(split=["train", "validation"])
    assert idle_with_images(make_config(early_stop_epochs=2), seen) == []
    assert idle_with_images(make_config(), make_index()) == []


def test_a_way_of_shuffling_is_said_where_images_are_drawn() -> None:
    runs: dict[str, Any] = {"data": {"uri": "images", "shuffle": "runs"}}
    weighed = make_index(weight=[1.0, 2.0])
    assert idle_with_images(make_config(**runs), make_index()) == []
    for config, index, by in (
        (make_config(**runs, balance="sampling"), make_index(), "balance: sampling"),
        (make_config(**runs), weighed, "the weights of the images"),
        (
            make_config(**runs, **EMBEDDING, embedding={"objective": "supcon"}),
            make_index(),
            "embedding.objective: supcon",
        ),
    ):
        (note,) = idle_with_images(config, index)
        assert note.startswith("data.shuffle: runs does nothing")
        assert note.endswith(by)
    assert idle_with_images(make_config(balance="sampling"), make_index()) == []


def quiet() -> dict[str, Any]:
    """Return what `make_config` changes of fine-tuning, as it is by default."""
    return {"batch_size": 64, "optimiser": {}}
