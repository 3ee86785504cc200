"""Run the training loop where the configuration says: in this process, or in workers that Ray Train
starts.

Both run the same `worker.run_worker`. What comes out is read back from the run's checkpoints, so it
makes no difference to the caller where the training took place, nor whether it was interrupted on
the way.
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs.data.index import Index
from jobs.train.borders import Place, Watcher
from jobs.train.config import TrainConfig
from jobs.train.embedding_network import fit_to_kind
from jobs.train.history import EpochRecord
from jobs.train.identity import claim_run
from jobs.train.network import Network
from jobs.train.worker import (
    configured_network,
    find_device,
    open_checkpoints,
    prepare_network,
    run_worker,
)
from models.errors import StorageError


@dataclass(frozen=True)
class Trained:
    """The network at its best epoch, in eval mode on the CPU, and how it got there."""

    network: Network
    history: list[EpochRecord]


def train(config: TrainConfig, index: Index, run_id: str, watcher: Watcher) -> Trained:
    """Train to the best epoch and return the network.

    Raises `ConfigError` if there is no room for the workers and a task that reads images, or the
    run's name was used for something else, and whatever the loop raised.
    """
    checkpoints = open_checkpoints(config, run_id)
    claim_run(config, index, run_id)
    # wrong names and weights show before workers start
    network = prepare_network(config, len(index.classes))
    if config.workers.most == 0:
        place = Place(find_device(config))
        run_worker(config, index, run_id, network, place, watcher)
    else:
        from jobs.train.ray_train import train_with_ray

        train_with_ray(config, index, run_id, watcher)
    best = checkpoints.load("best")
    if best is None:
        raise StorageError(
            f"the workers are done and left no checkpoint in {checkpoints.store.uri}; every node "
            "has to see that place as this process does: set runs to a bucket, or to a folder that "
            "all nodes share"
        )
    network = configured_network(config.network, len(index.classes))
    network = fit_to_kind(network, config, len(index.classes))
    network.load_state_dict(best["served"])
    # A head that was fitted anew, with other settings or in fewer epochs, is the best one only.
    is_frozen = config.network.freeze == "backbone"
    last = best if is_frozen else checkpoints.load("last") or best
    history = [EpochRecord(**record) for record in last["history"]]
    return Trained(network.eval(), history)
