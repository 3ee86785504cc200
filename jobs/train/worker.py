"""One worker's part of a training: its share of the images, and what it does with them.

The same whether the worker is this process or one of many that Ray Train started.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from cluster.environment import data_cpus
from jobs.data.index import Index
from jobs.data.quarantine import keep_quarantine
from jobs.data.streams import Batch, IndexedImages, StreamOptions
from jobs.train.checkpoints import Checkpoints
from jobs.train.config import TrainConfig
from jobs.train.embedding_network import fit_to_kind
from jobs.train.frozen import fit_frozen
from jobs.train.loop import Place, Watcher, fit
from jobs.train.network import Network, build_network
from jobs.train.weights import load_weights
from models.storage import open_store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """The batches of one worker."""

    images: IndexedImages
    config: TrainConfig
    place: Place

    def num_train_batches(self) -> int:
        return self.images.num_batches(
            "train",
            batch_size=self.config.batch_size,
            shuffle=True,
            class_weights=self._class_weights,
            images_per_class=self.config.images_per_class,
            world=self.place.world,
        )

    def train(self, epoch: int) -> Iterator[Batch]:
        return self.images.batches(
            "train",
            batch_size=self.config.batch_size,
            epoch=epoch,
            seed=self.config.seed,
            shuffle=True,
            class_weights=self._class_weights,
            images_per_class=self.config.images_per_class,
            rank=self.place.rank,
            world=self.place.world,
        )

    def validation(self) -> Iterator[Batch]:
        return self.images.batches(
            "validation",
            batch_size=self.config.batch_size,
            shuffle=False,
            rank=self.place.rank,
            world=self.place.world,
        )

    @property
    def _class_weights(self) -> list[float] | None:
        even = [1.0] * len(self.images.classes)
        return even if self.config.balance == "sampling" else None


def run_worker(
    config: TrainConfig,
    index: Index,
    run_id: str,
    network: Network,
    place: Place,
    watcher: Watcher,
) -> None:
    """Do one worker's part; the first worker leaves the result in the run's checkpoints."""
    images = open_images(config, index, _data_cpus(config, place.world))
    checkpoints = open_checkpoints(config, run_id)
    try:
        if config.network.freeze == "backbone":
            fit_frozen(config, index, images, checkpoints, network, run_id, place, watcher)
        else:
            _fine_tune(config, index, images, checkpoints, network, place, watcher)
    finally:
        if images.broken:
            name = f"quarantine-training-{place.rank}.jsonl"
            where = keep_quarantine(images.broken, config.runs, run_id, name)
            logger.warning(
                "%d images could not be read any more when training reached them, listed in %s; "
                "the first: %s: %s",
                len(images.broken),
                where,
                images.broken[0].path,
                images.broken[0].reason,
            )


def _fine_tune(
    config: TrainConfig,
    index: Index,
    images: IndexedImages,
    checkpoints: Checkpoints,
    network: Network,
    place: Place,
    watcher: Watcher,
) -> None:
    fit(
        network,
        Share(images, config, place),
        config,
        class_names=index.classes,
        class_counts=images.class_totals("train"),
        checkpoints=checkpoints,
        place=place,
        watcher=watcher,
    )


def prepare_network(config: TrainConfig, num_classes: int) -> Network:
    """Build the configured network with its pretrained weights; what has none follows the seed, the
    same in every worker.
    """
    torch.manual_seed(config.seed)
    network = build_network(config.network.backbone, num_classes, config.network.dropout)
    load_weights(network, config.network.backbone, config.network.weights)
    return fit_to_kind(network, config, num_classes)


def open_images(config: TrainConfig, index: Index, cpu_limit: float | None = None) -> IndexedImages:
    """Return the images of an index as batches, read as the configuration says."""
    return IndexedImages(
        index, config.preprocess, StreamOptions.from_config(config.data, cpu_limit)
    )


def open_checkpoints(config: TrainConfig, run_id: str) -> Checkpoints:
    """Return the checkpoints of a run."""
    return Checkpoints(open_store(config.runs).child(f"{run_id}/checkpoints"))


def _data_cpus(config: TrainConfig, world: int) -> float | None:
    """Return the CPUs that one worker's data pipeline may take, or None for all that are free."""
    if config.workers.num_workers == 0:
        return data_cpus()
    import ray

    free = float(ray.cluster_resources().get("CPU", 0)) - world * config.workers.cpus_per_worker
    return max(1.0, free / world)
