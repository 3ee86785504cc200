"""Run the training loop where the configuration says: in this process, or in workers that Ray Train
starts.

Both run the same `run_worker`. What comes out is read back from the run's checkpoints, so it makes
no difference to the caller where the training took place, nor whether it was interrupted on the
way.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from cluster.session import data_cpus
from jobs.data.index import Index
from jobs.data.streams import Batch, IndexedImages, StreamOptions
from jobs.data.transforms import Augmentation
from jobs.train.checkpoints import Checkpoints
from jobs.train.config import TrainConfig
from jobs.train.feature_cache import FeatureCache
from jobs.train.features import Features, compute_features, open_extractor
from jobs.train.head import fit_head
from jobs.train.history import EpochRecord, best_epoch, score
from jobs.train.loop import Place, Watcher, fit
from jobs.train.network import Network, build_network
from jobs.train.weights import load_weights
from models.errors import ConfigError, DataError, SightlineError
from models.storage import open_store

logger = logging.getLogger(__name__)

FEATURE_BATCH = 64


@dataclass(frozen=True)
class Trained:
    """The network at its best epoch, in eval mode on the CPU, and how it got there."""

    network: Network
    history: list[EpochRecord]


@dataclass(frozen=True)
class _Share:
    """The batches of one worker."""

    images: IndexedImages
    config: TrainConfig
    place: Place

    def num_train_batches(self) -> int:
        return self.images.num_batches(
            "train", batch_size=self.config.batch_size, shuffle=True, world=self.place.world
        )

    def train(self, epoch: int) -> Iterator[Batch]:
        even = [1.0] * len(self.images.classes)
        return self.images.batches(
            "train",
            batch_size=self.config.batch_size,
            epoch=epoch,
            seed=self.config.seed,
            shuffle=True,
            class_weights=even if self.config.balance == "sampling" else None,
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


def train(config: TrainConfig, index: Index, run_id: str, watcher: Watcher) -> Trained:
    """Train to the best epoch and return the network.

    Raises `ConfigError` if the workers would leave Ray Data no CPU, and whatever the loop raised.
    """
    checkpoints = open_checkpoints(config, run_id)
    # wrong names and weights show before workers start
    network = prepare_network(config, len(index.classes))
    if config.workers.num_workers == 0:
        place = Place(_device(config))
        run_worker(config, index, checkpoints, network, place, watcher)
    else:
        _train_with_ray(config, index, run_id)
    best = checkpoints.load("best")
    assert best is not None
    network = build_network(config.network.backbone, len(index.classes))
    network.load_state_dict(best["served"])
    history = [EpochRecord(**record) for record in (checkpoints.load("last") or best)["history"]]
    return Trained(network.eval(), history)


def run_worker(
    config: TrainConfig,
    index: Index,
    checkpoints: Checkpoints,
    network: Network,
    place: Place,
    watcher: Watcher,
) -> None:
    """Do one worker's part; the first worker leaves the result in the checkpoints."""
    images = open_images(config, index, _data_cpus(config, place.world))
    if config.network.freeze == "backbone":
        _fit_frozen(config, index, images, checkpoints, network, place, watcher)
        return
    fit(
        network,
        _Share(images, config, place),
        config,
        class_names=index.classes,
        class_counts=tuple(row["train"] for row in index.counts.values()),
        checkpoints=checkpoints,
        place=place,
        watcher=watcher,
    )


def prepare_network(config: TrainConfig, num_classes: int) -> Network:
    """Build the configured network with its pretrained weights."""
    network = build_network(config.network.backbone, num_classes, config.network.dropout)
    load_weights(network, config.network.backbone, config.network.weights)
    return network


def open_images(config: TrainConfig, index: Index, cpu_limit: float | None = None) -> IndexedImages:
    """Return the images of an index as batches, read as the configuration says."""
    return IndexedImages(
        index, config.preprocess, StreamOptions.from_config(config.data, cpu_limit)
    )


def open_checkpoints(config: TrainConfig, run_id: str) -> Checkpoints:
    """Return the checkpoints of a run."""
    return Checkpoints(open_store(config.runs).child(f"{run_id}/checkpoints"))


def _fit_frozen(
    config: TrainConfig,
    index: Index,
    images: IndexedImages,
    checkpoints: Checkpoints,
    network: Network,
    place: Place,
    watcher: Watcher,
) -> None:
    """Compute this worker's share of the features, put the shares together, and fit the head on the
    first worker.
    """
    cache = FeatureCache(open_store(config.runs).child("features"))
    augmentation = Augmentation(config.augment)
    parts: dict[str, Features] = {}
    with open_extractor(network, place.device, torch.get_num_threads()) as extract:
        for split in ("train", "validation"):
            num_views = config.network.num_views if split == "train" else 1
            key = cache.key(config, network, index, split, num_views, place.rank, place.world)

            def compute(split: str = split, num_views: int = num_views) -> Features:
                return compute_features(
                    images.batches(
                        split,
                        batch_size=FEATURE_BATCH,
                        shuffle=False,
                        rank=place.rank,
                        world=place.world,
                    ),
                    extract,
                    augmentation,
                    num_views=num_views,
                    seed=config.seed + place.rank,
                    advance=lambda count: watcher.step(count, float("nan")),
                )

            parts[split] = _gather(cache.get(key, compute), place)
    if not place.is_first:
        return
    if not len(parts["train"]):
        raise DataError("not one training image could be read")
    with _one_thread():
        history = fit_head(
            network, parts["train"], parts["validation"], config, index.classes, watcher.epoch
        )
    best = history[best_epoch(history, config.monitor)]
    checkpoints.save(
        {"served": network.state_dict(), "history": [vars(record) for record in history]},
        next_epoch=len(history),
        score=score(best, config.monitor),
        is_best=True,
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Give torch one thread: the head's matrices are small, and on cores that Ray's processes use
    too, waiting for a second thread took seven times as long (1.0 against 0.14 s an epoch, measured
    on 2 cores)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _gather(features: Features, place: Place) -> Features:
    if place.world == 1:
        return features
    shares: list[Features | None] = [None] * place.world
    torch.distributed.all_gather_object(shares, features)
    found = [share for share in shares if share is not None and len(share)]
    if not found:
        return features
    return Features(
        torch.cat([share.values for share in found]), torch.cat([share.labels for share in found])
    )


def _device(config: TrainConfig) -> torch.device:
    if not config.workers.use_gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("workers.use_gpu is true, but torch finds no CUDA device on this machine")
    return torch.device("cuda")


# --- Ray Train ---------------------------------------------------------------------------------


def _train_with_ray(config: TrainConfig, index: Index, run_id: str) -> None:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    workers = config.workers
    _check_cpus(config, float(ray.cluster_resources().get("CPU", 0)))
    trainer = TorchTrainer(
        _worker_main,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "index": ray.put(index),
            "run_id": run_id,
        },
        scaling_config=ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.use_gpu,
            resources_per_worker={"CPU": workers.cpus_per_worker}
            | ({"GPU": 1} if workers.use_gpu else {}),
        ),
        run_config=RunConfig(
            name=f"{run_id}-ray",
            storage_path=open_store(config.runs).uri,
            failure_config=FailureConfig(max_failures=workers.max_failures),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        cause = _our_cause(error)
        if cause is None:
            raise
        raise cause from error


def _worker_main(payload: dict[str, Any]) -> None:
    import ray
    from ray import train as ray_train
    from ray.train.torch import get_device

    config = TrainConfig.model_validate(payload["config"])
    index: Index = ray.get(payload["index"])
    context = ray_train.get_context()
    place = Place(get_device(), context.get_world_rank(), context.get_world_size())
    checkpoints = open_checkpoints(config, payload["run_id"])
    network = prepare_network(config, len(index.classes))
    run_worker(config, index, checkpoints, network, place, _RayWatcher(place))


@dataclass(frozen=True)
class _RayWatcher:
    """Reports epochs to Ray Train; the driver's terminal sees the first worker's lines."""

    place: Place

    def step(self, num_images: int, loss: float) -> None:
        return

    def epoch(self, record: EpochRecord) -> None:
        if self.place.is_first:
            print(describe(record), flush=True)


def describe(record: EpochRecord) -> str:
    """Return one line on an epoch."""
    figures = "  ".join(f"{k} {v:.4f}" for k, v in (record.validation or {}).items())
    speed = f"  {record.images_per_second:.0f} images/s" if record.images_per_second else ""
    waiting = f"  waiting {record.waiting_share:.0%}" if record.images_per_second else ""
    return (
        f"epoch {record.epoch + 1}: train loss {record.train_loss:.4f}  {figures}{speed}{waiting}"
    )


def _check_cpus(config: TrainConfig, available: float) -> None:
    wanted = config.workers.num_workers * config.workers.cpus_per_worker
    if wanted + 1 > available:
        raise ConfigError(
            f"workers.num_workers {config.workers.num_workers} x cpus_per_worker "
            f"{config.workers.cpus_per_worker:g} take {wanted:g} of the cluster's {available:g} "
            "CPUs; Ray Data needs at "
            "least one more to feed them. Lower one of the two, or add nodes"
        )


def _data_cpus(config: TrainConfig, world: int) -> float | None:
    """Return the CPUs that one worker's data pipeline may take, or None for all that are free."""
    if config.workers.num_workers == 0:
        return data_cpus()
    import ray

    free = float(ray.cluster_resources().get("CPU", 0)) - world * config.workers.cpus_per_worker
    return max(1.0, free / world)


def _our_cause(error: BaseException) -> SightlineError | None:
    """Find the error raised on purpose inside the layers that Ray wraps around it."""
    seen: set[int] = set()
    pending: list[BaseException] = [error]
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, SightlineError):
            return current
        failures = getattr(current, "worker_failures", None) or {}
        pending += [
            inner
            for inner in (
                current.__cause__,
                current.__context__,
                getattr(current, "cause", None),
                *failures.values(),
            )
            if isinstance(inner, BaseException)
        ]
    return None
