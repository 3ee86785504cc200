"""Settings that are allowed but do nothing beside the others, said before a run instead of nowhere.

What contradicts itself is refused by `jobs.train.config`. This is for what somebody sets, trains
with for a night, and believes to have had an effect.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Any

from pydantic import BaseModel

from jobs.data.index import Index
from jobs.data.transforms import AugmentConfig
from jobs.train.config import TrainConfig
from jobs.train.epoch_order import drawn_by
from jobs.train.history import growing_epochs

# what only steps through the whole network use
OF_FINE_TUNING = (
    "accumulate",
    "batch_size",
    "checkpoint.every_seconds",
    "checkpoint.every_steps",
    "compile",
    "data.cache_gib",
    "data.shuffle",
    "network.drop_path",
    "optimiser.backbone_lr_scale",
    "optimiser.ema_decay",
    "optimiser.layer_decay",
    "precision",
    "progressive",
    "tracking.every_steps",
    "tracking.sample_ids",
)
# a strength, and what has to be on for it
STRENGTHS = {
    "augment.blur_sigma": "augment.blur",
    "augment.erase_area": "augment.erase",
    "augment.randaugment_magnitude": "augment.randaugment_ops",
}


def idle_settings(config: TrainConfig, *, is_trial: bool = False) -> list[str]:
    """Return a sentence for every group of settings that does nothing in this run, or trial of a
    sweep, with what to do.
    """
    found = [*_of_the_mode(config), *_of_the_kind(config), *_strengths(config)]
    if not is_trial:
        found += _of_the_epochs(config)
    if not is_trial and not config.workers.most and _is_changed(config, "workers.cpus_per_worker"):
        found.append(
            f"workers.cpus_per_worker {config.workers.cpus_per_worker:g} does nothing with "
            "workers.num_workers: 0, where this process takes the steps; set num_workers to 1 or "
            "more"
        )
    return found


def idle_with_images(config: TrainConfig, index: Index) -> list[str]:
    """Return the same for what shows only when the images are known."""
    found = []
    if config.early_stop_epochs is not None and not index.num_images("validation"):
        found.append(
            f"early_stop_epochs {config.early_stop_epochs} does nothing without validation images, "
            "by which epochs are compared; set data.split"
        )
    if config.network.freeze == "none" and _is_changed(config, "data.shuffle"):
        drawn = drawn_by(config, index)
        if drawn is not None:
            found.append(
                f"data.shuffle: {config.data.shuffle} does nothing where images are drawn, here by "
                f"{drawn}"
            )
    return found


def _of_the_epochs(config: TrainConfig) -> Iterator[str]:
    patience, counted = config.early_stop_epochs, config.epochs - growing_epochs(config)
    if patience is not None and patience > counted - 2:
        yield (
            f"early_stop_epochs {patience} does nothing with {counted} epochs at the full size, of "
            f"which the first would have to be followed by more than {patience}; lower it"
        )


def _of_the_mode(config: TrainConfig) -> Iterator[str]:
    views = config.network.num_views
    if config.network.freeze == "none":
        if views > 1:
            yield (
                f"network.num_views {views} does nothing with network.freeze: none, where every "
                "epoch augments anew"
            )
        if config.network.features == "stages":
            yield (
                "network.features: stages does nothing with network.freeze: none: a backbone that "
                "is trained is read at its end"
            )
        return
    if idle := [name for name in OF_FINE_TUNING if _is_changed(config, name)]:
        yield (
            f"{', '.join(idle)}: nothing with network.freeze: backbone, where only the head is "
            "fitted, on features; set network.freeze: none to train the whole network"
        )
    if config.augment != AugmentConfig() and views == 1:
        yield (
            "augment.* does nothing with network.freeze: backbone and network.num_views: 1, since "
            "the one view of an image is the image as it is; set network.num_views to 2 or more"
        )
    elif config.augment == AugmentConfig() and views > 1:
        yield (
            f"network.num_views {views} computes the same view {views} times, since augment.* is "
            "off; set what leaves a label true, as augment.horizontal_flip: true"
        )
    elif config.augment.is_mixing:
        yield (
            "augment.mixup_alpha and cutmix_alpha do nothing with network.freeze: backbone: "
            "features are computed of single images; set network.freeze: none"
        )


def _of_the_kind(config: TrainConfig) -> Iterator[str]:
    if config.embedding is None:
        return
    if config.embedding.has_class_weights and _is_changed(config, "embedding.images_per_class"):
        yield (
            f"embedding.images_per_class {config.embedding.images_per_class} does nothing with "
            f"embedding.objective: {config.embedding.objective}, which needs no pairs in a batch; "
            "set embedding.objective: supcon"
        )
    if _is_changed(config, "export.num_report_pictures"):
        yield (
            "export.num_report_pictures does nothing with kind: embedding, whose report has no "
            "mistakes to show"
        )
    if _is_changed(config, "optimiser.label_smoothing"):
        yield (
            "optimiser.label_smoothing does nothing with kind: embedding, which learns from images "
            "that are alike or not; embedding.margin or .temperature make it stricter"
        )


def _strengths(config: TrainConfig) -> Iterator[str]:
    for name, switch in STRENGTHS.items():
        if _is_changed(config, name) and not _value(config, switch):
            yield f"{name} does nothing while {switch} is 0; raise {switch}"
    if _is_changed(config, "augment.mix_probability") and not (
        config.augment.mixup_alpha or config.augment.cutmix_alpha
    ):
        yield (
            "augment.mix_probability does nothing while augment.mixup_alpha and "
            "augment.cutmix_alpha are 0; raise one of them"
        )


def _value(config: TrainConfig, name: str) -> Any:
    return reduce(getattr, name.split("."), config)


def _is_changed(config: TrainConfig, name: str) -> bool:
    """Say whether a setting differs from its default."""
    *section, field = name.split(".")
    owner: BaseModel = reduce(getattr, section, config)
    return bool(getattr(owner, field) != type(owner).model_fields[field].default)
