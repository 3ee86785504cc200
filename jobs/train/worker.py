"""One worker's part of a training: its share of the images, and what it does with them.

The same whether the worker is this process or one of many that Ray Train started.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from cluster.environment import data_cpus
from jobs.data.index import Index
from jobs.data.quarantine import Broken, keep_quarantine
from jobs.data.streams import Batch, IndexedImages, Order, StreamOptions
from jobs.train.audience import Audience
from jobs.train.borders import Place, Watcher
from jobs.train.checkpoints import Checkpoints
from jobs.train.config import TrainConfig
from jobs.train.embedding_network import fit_to_kind
from jobs.train.freed_memory import keeping_freed_memory
from jobs.train.frozen import fit_frozen
from jobs.train.learning_config import NetworkConfig
from jobs.train.loop import fit
from jobs.train.memory import cache_bytes, explained_shortage
from jobs.train.metrics_log import MetricsLog
from jobs.train.mlflow_log import MlflowLog, open_client
from jobs.train.network import Network, build_network
from jobs.train.ray_metrics import RayGauges
from jobs.train.samples import check_recordable, recorded
from jobs.train.sharding import check_divisible
from jobs.train.weights import load_weights
from models.errors import ConfigError, StorageError
from models.storage import Store, open_store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """The batches of one worker."""

    images: IndexedImages
    config: TrainConfig
    place: Place
    store: Store  # where the images of its steps are written down

    def num_train_batches(self, start: int = 0) -> int:
        return self.images.num_batches("train", **self.order(0, start))

    def train(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        batches = self.images.batches("train", **self.order(epoch, start))
        if not self.config.tracking.sample_ids:
            return batches
        return recorded(batches, self.store, self.place, epoch, start, self.config.batch_size)

    def validation(self) -> Iterator[Batch]:
        return self.images.batches(
            "validation",
            batch_size=self.config.batch_size,
            shuffle=False,
            rank=self.place.rank,
            world=self.place.world,
        )

    def order(self, epoch: int, start: int = 0) -> Order:
        """Return which training images this worker takes in an epoch, and how."""
        even = [1.0] * len(self.images.classes)
        return {
            "batch_size": self.config.batch_size,
            "epoch": epoch,
            "seed": self.config.seed,
            "shuffle": True,
            "class_weights": even if self.config.balance == "sampling" else None,
            "images_per_class": self.config.images_per_class,
            "rank": self.place.rank,
            "world": self.place.world,
            "start": start,
        }


def run_worker(
    config: TrainConfig,
    index: Index,
    run_id: str,
    network: Network,
    place: Place,
    watcher: Watcher,
) -> None:
    """Do one worker's part; the first worker leaves the result in the run's checkpoints."""
    images = _open_share(config, index, place.world)
    checkpoints = open_checkpoints(config, run_id)
    audience = Audience([watcher, *_logs(config, run_id, place)], place)
    try:
        with explained_shortage(config):
            if config.network.freeze == "backbone":
                fit_frozen(config, index, images, checkpoints, network, run_id, place, audience)
            else:
                share = Share(images, config, place, open_samples(config).child(run_id))
                with keeping_freed_memory(place.device.type == "cpu"):
                    _fine_tune(share, index, checkpoints, network, audience)
    finally:
        audience.close()
        if images.broken:
            _keep_broken(images.broken, config, run_id, place)


def _keep_broken(broken: Sequence[Broken], config: TrainConfig, run_id: str, place: Place) -> None:
    """Write down which images training could not read. A store that refuses that ends no run."""
    name = f"quarantine-training-{place.rank}.jsonl"
    try:
        where = f"listed in {keep_quarantine(broken, config.runs, run_id, name)}"
    except StorageError as error:
        where = f"and could not be listed ({error})"
    logger.warning(
        "%d images could not be read any more when training reached them, %s; the first: %s: %s",
        len(broken),
        where,
        broken[0].path,
        broken[0].reason,
    )


def _fine_tune(
    share: Share, index: Index, checkpoints: Checkpoints, network: Network, watcher: Watcher
) -> None:
    fit(
        network,
        share,
        share.config,
        class_names=index.classes,
        class_counts=share.images.class_totals("train"),
        checkpoints=checkpoints,
        place=share.place,
        watcher=watcher,
    )


def _logs(config: TrainConfig, run_id: str, place: Place) -> list[Watcher]:
    """Return what writes down how the run goes; the first worker does."""
    if not place.is_first:
        return []
    every_steps = config.tracking.every_steps
    return [
        MetricsLog(open_run(config, run_id), every_steps, place.world),
        RayGauges(config.name, run_id),
        *([] if config.tracking.mlflow_uri is None else [MlflowLog(config, run_id)]),
    ]


def check_tracking(config: TrainConfig) -> None:
    """Raise `ConfigError` where what is to be written down cannot be."""
    if config.tracking.sample_ids:
        check_recordable(open_samples(config).uri)
    if config.tracking.mlflow_uri is not None:
        open_client(config)


def configured_network(wanted: NetworkConfig, num_classes: int) -> Network:
    """Build the configured network with random weights."""
    return build_network(
        wanted.backbone,
        num_classes,
        wanted.dropout,
        wanted.drop_path,
        reads_stages=wanted.reads_stages,
        hidden_units=wanted.hidden_units,
    )


def prepare_network(config: TrainConfig, num_classes: int) -> Network:
    """Build the configured network with its pretrained weights; what has none follows the seed, the
    same in every worker.
    """
    torch.manual_seed(config.seed)
    wanted = config.network
    network = configured_network(wanted, num_classes)
    load_weights(network, wanted.backbone, wanted.weights, wanted.weights_sha256)
    if config.workers.shard:
        check_divisible(network)
    return fit_to_kind(network, config, num_classes)


def find_device(config: TrainConfig) -> torch.device:
    """Return what this process computes on. Raises `ConfigError` for a GPU that is not there."""
    if not config.workers.use_gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("workers.use_gpu is true, but torch finds no CUDA device on this machine")
    return torch.device("cuda")


def open_images(config: TrainConfig, index: Index, cpu_limit: float | None = None) -> IndexedImages:
    """Return the images of an index as batches, read as the configuration says."""
    return IndexedImages(
        index, config.preprocess, StreamOptions.from_config(config.data, cpu_limit)
    )


def open_checkpoints(config: TrainConfig, run_id: str) -> Checkpoints:
    """Return the checkpoints of a run."""
    return Checkpoints(open_run(config, run_id).child("checkpoints"), config.checkpoint.keep)


def open_run(config: TrainConfig, run_id: str) -> Store:
    """Return the folder of a run: checkpoints, curves, lists of broken images."""
    return open_store(config.runs, is_patient=True).child(run_id)


def open_samples(config: TrainConfig) -> Store:
    """Return where runs write down which images their steps had."""
    named = config.tracking.sample_ids
    return open_store(named if isinstance(named, str) else config.runs)


def _open_share(config: TrainConfig, index: Index, world: int) -> IndexedImages:
    """Return the images, to be read with what CPUs the workers leave.

    As many workers as there is room for may leave none: then the tasks that read run beside them,
    and ask Ray for no CPU, which they would wait for.
    """
    if config.workers.most == 0:
        options = StreamOptions.from_config(config.data, data_cpus())
    else:
        import ray

        free = float(ray.cluster_resources().get("CPU", 0)) - world * config.workers.cpus_per_worker
        options = StreamOptions.from_config(config.data, max(1.0, free / world))
        options = replace(options, task_cpus=1.0 if free >= 1 else 0.0)
    return IndexedImages(
        index, config.preprocess, replace(options, cache_bytes=cache_bytes(config))
    )
