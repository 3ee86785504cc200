"""Trains on a cluster of two nodes on this machine, and loses the one with more CPUs at a step.

Run by a test, as a process of its own: with settings file, index file, run and step as arguments.
With `drain` behind them, Ray is told of the loss before, and the node is lost once the run has left
a checkpoint in mid-epoch.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import ray
import yaml
from ray.cluster_utils import Cluster

from jobs.train.borders import Watcher
from jobs.train.config import TrainConfig
from jobs.train.trainer import train


def drain(address: str, node: str) -> None:
    """Say that a node is taken away in ten minutes."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address]
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a spot instance"]
    deadline = ["--deadline-remaining-seconds", "600"]
    subprocess.run([*command, "--node-id", node, *reason, *deadline], check=True)


def main() -> None:
    """Train to the end."""
    settings, index, run, step, *drained = sys.argv[1:]
    config = TrainConfig.model_validate(yaml.safe_load(Path(settings).read_text()))
    samples = Path(config.runs) / run / "samples"
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20},
    )
    try:
        node = cluster.add_node(num_cpus=2, object_store_memory=100 << 20)
        ray.init(address=cluster.address)

        def lose() -> None:
            while sum(len(p.read_bytes().splitlines()) for p in samples.glob("*")) < int(step):
                time.sleep(0.01)
            if drained:
                drain(cluster.address, node.node_id)
                while not list(samples.parent.glob("checkpoints/*-0*[1-9]-*.json")):
                    time.sleep(0.01)
            cluster.remove_node(node, allow_graceful=False)

        threading.Thread(target=lose, daemon=True).start()
        train(config, pickle.loads(Path(index).read_bytes()), run, Watcher())
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
