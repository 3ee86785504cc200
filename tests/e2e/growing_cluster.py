"""Trains on a cluster that has one CPU, and an autoscaler that may give it a node of two more.

Run by a test, as a process of its own, with a settings file and an index file as arguments. Prints
how many nodes there were before and at the end.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
import yaml

from cluster.environment import MARK, free_port
from cluster.processes import end_marked
from jobs.train.borders import Watcher
from jobs.train.config import TrainConfig
from jobs.train.trainer import train
from tests.faults.training.nodes import STORE_BYTES

SESSION = "a-growing-cluster"
# Ray's own provider of nodes that are processes of this machine, for its autoscaler as it is.
AUTOSCALER: dict[str, Any] = {
    "cluster_name": "growing",
    "provider": {"type": "fake_multinode"},
    "auth": {},
    "max_workers": 1,
    "idle_timeout_minutes": 5,
    "upscaling_speed": 1.0,
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {"CPU": 2, "object_store_memory": STORE_BYTES},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 1,
        },
    },
}


def main() -> None:
    """Train to the end."""
    settings, index = sys.argv[1:]
    config = TrainConfig.model_validate(yaml.safe_load(Path(settings).read_text()))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RAY_ADDRESS"] = start(Path(folder))
        try:
            ray.init(log_to_driver=False)
            before = len(ray.nodes())
            train(config, pickle.loads(Path(index).read_bytes()), "grown", Watcher())
            print(json.dumps([before, len(ray.nodes())]))
        finally:
            ray.shutdown()
            end_marked(SESSION)


def start(folder: Path) -> str:
    """Start the head with its autoscaler; return where drivers connect to."""
    file, port = folder / "autoscaler.yaml", free_port()
    provider = {**AUTOSCALER["provider"], "gcs_address": f"127.0.0.1:{port}"}
    file.write_text(yaml.safe_dump({**AUTOSCALER, "provider": provider}))
    subprocess.run(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head"),
            *("--port", str(port), "--num-cpus", "1", "--include-dashboard", "false"),
            *("--autoscaling-config", str(file), "--object-store-memory", str(STORE_BYTES)),
            *("--temp-dir", str(folder / "ray"), "--disable-usage-stats"),
        ],
        env={
            **os.environ,
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            MARK: SESSION,
        },
        check=True,
        stdout=sys.stderr,
    )
    return f"127.0.0.1:{port}"


if __name__ == "__main__":
    main()
