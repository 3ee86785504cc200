"""The kind `embedding` in a configuration: what is filled in, and what contradicts itself."""

from __future__ import annotations

import pytest

from jobs.train.config import TrainConfig


def make_config(**changes: object) -> TrainConfig:
    """Return a configuration of kind `embedding`."""
    values: dict[str, object] = {"name": "caps", "kind": "embedding", "data": {"uri": "x"}}
    return TrainConfig.model_validate({**values, **changes})


def test_the_kind_alone_is_enough_and_travels_to_workers() -> None:
    config = make_config()
    assert config.monitor == "recall_at_1"
    assert config.embedding is not None
    assert config.embedding.size == 128
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config


def test_other_kinds_have_no_embedding_section() -> None:
    config = TrainConfig.model_validate({"name": "caps", "data": {"uri": "x"}})
    assert config.embedding is None
    assert config.monitor == "balanced_accuracy"
    assert config.images_per_class is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kind": "generic", "embedding": {}}, "the section embedding is of kind: embedding"),
        ({"monitor": "loss"}, "no figure of kind embedding; expected one of recall_at_1"),
        ({"kind": "generic", "monitor": "map_at_r"}, "no figure of kind generic; expected one of"),
        ({"embedding": {"objective": "supcon", "margin": 0.1}}, "objective: arcface or cosface"),
        ({"embedding": {"temperature": 0.1}}, "belongs to embedding.objective: supcon"),
        ({"embedding": {"margin": 1.6}}, "of arcface must be below 1.57"),
        ({"embedding": {"objective": "cosface", "margin": 1.0}}, "of cosface must be below 1"),
        ({"embedding": {"held_out_classes": ["a", "a"]}}, "'a' is named twice"),
        ({"embedding": {"held_out_classes": 3}}, "less than 1"),
        ({"embedding": {"objective": "supcon"}, "balance": "weights"}, "set balance: sampling"),
        ({"embedding": {"objective": "supcon"}, "batch_size": 30}, "a whole number of classes"),
        ({"embedding": {"objective": "supcon"}, "batch_size": 4}, "at least 2"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make_config(**changes)


@pytest.mark.parametrize("given", [0.25, ["a", "b"]])
def test_held_out_classes_are_names_or_a_share(given: float | list[str]) -> None:
    section = make_config(embedding={"held_out_classes": given}).embedding
    assert section is not None
    expected = given if isinstance(given, float) else tuple(given)
    assert section.held_out_classes == expected


def test_only_what_compares_images_of_a_batch_needs_several_of_a_class() -> None:
    assert make_config(embedding={"objective": "cosface"}).images_per_class is None
    contrastive = {"objective": "supcon", "images_per_class": 8}
    assert make_config(embedding=contrastive).images_per_class == 8
    # Features have batches of their own.
    frozen = {"batch_size": 20, "network": {"freeze": "backbone"}}
    assert make_config(embedding=contrastive, **frozen).images_per_class == 8
