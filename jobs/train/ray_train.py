"""Run the workers of a training under Ray Train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jobs.causes import find_cause
from jobs.data.index import Index
from jobs.train.borders import Place, Watcher
from jobs.train.config import TrainConfig
from jobs.train.history import EpochRecord, describe
from jobs.train.worker import prepare_network, run_worker
from models.errors import ConfigError
from models.storage import open_store

# How long a worker waits for the others: at a step, and for their whole share of the features. That
# a worker died shows at once; this is for one that hangs.
STEP_TIMEOUT_S = 1800
FEATURES_TIMEOUT_S = 24 * 3600


def train_with_ray(config: TrainConfig, index: Index, run_id: str) -> None:
    """Start the configured workers and wait until they are done.

    Raises `ConfigError` if they would leave no CPU to read images, and whatever a worker raised.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

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
        torch_config=TorchConfig(
            timeout_s=FEATURES_TIMEOUT_S if config.network.freeze == "backbone" else STEP_TIMEOUT_S
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # Ray Train wraps in several classes, by where it failed
        cause = find_cause(error)
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
    network = prepare_network(config, len(index.classes))
    run_worker(config, index, payload["run_id"], network, place, _RayWatcher(place))


@dataclass(frozen=True)
class _RayWatcher(Watcher):
    """Reports epochs to Ray Train; the driver's terminal sees the first worker's lines."""

    place: Place

    def epoch(self, record: EpochRecord) -> None:
        if self.place.is_first:
            print(describe(record), flush=True)


def _check_cpus(config: TrainConfig, available: float) -> None:
    wanted = config.workers.num_workers * config.workers.cpus_per_worker
    if wanted + 1 > available:
        raise ConfigError(
            f"workers.num_workers {config.workers.num_workers} x cpus_per_worker "
            f"{config.workers.cpus_per_worker:g} take {wanted:g} of the cluster's {available:g} "
            "CPUs; the tasks that read images for them need at least one more. Lower one of the "
            "two, or add nodes"
        )
