"""A Ray cluster of several nodes on this machine, which loses nodes and gets others for them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil

from tests.faults.training.starving import guarding

STORE_BYTES = 100 << 20
NOTICE_SECONDS = 600
ATTEMPTS = 4


@dataclass(frozen=True)
class Nodes:
    """The driver is on the head, which has one CPU; workers are on nodes of `cpus` each."""

    cluster: Any
    cpus: int

    @classmethod
    @contextmanager
    def opened(
        cls, count: int, cpus: int, *, quiet: bool = False, guarded: bool = False
    ) -> Iterator[Nodes]:
        """Start a head and so many nodes, and connect to them; `quiet`: without what workers
        print; `guarded`: nodes other than the head end processes when memory runs out.
        """
        import ray
        from ray.cluster_utils import Cluster

        # Otherwise only the main thread could start nodes, which Ray ends with the thread that did.
        cluster = Cluster(shutdown_at_exit=False)
        try:
            nodes = cls(cluster, cpus)
            nodes.start(num_cpus=1, include_dashboard=False)
            if guarded:  # not the head, which on a cluster has a memory of its own
                os.environ |= guarding()
            for _ in range(count):
                nodes.add()
            ray.init(address=cluster.address, log_to_driver=not quiet)
            yield nodes
        finally:
            ray.shutdown()
            cluster.shutdown()

    @property
    def address(self) -> str:
        """Where drivers connect to."""
        return str(self.cluster.address)

    def add(self) -> Any:
        """Start a node for a worker."""
        return self.start(num_cpus=self.cpus)

    def start(self, **settings: Any) -> Any:
        """Start a node. Ray gives up after 30 s, too soon on a busy machine: it is tried again."""
        for _ in range(ATTEMPTS - 1):
            with suppress(Exception):  # Ray raises no other class
                return self.cluster.add_node(object_store_memory=STORE_BYTES, **settings)
        return self.cluster.add_node(object_store_memory=STORE_BYTES, **settings)

    def lose(self, node: Any) -> None:
        """End a node and all on it at once."""
        self.cluster.remove_node(node, allow_graceful=False)

    def of_process(self, pid: int) -> Any:
        """Return the node that a process runs on, other than the head."""
        parents = {parent.pid for parent in psutil.Process(pid).parents()}
        for node in self.cluster.worker_nodes:
            if node.all_processes["raylet"][0].process.pid in parents:
                return node
        raise LookupError(f"process {pid} runs on none of the nodes")

    def drain(self, node: Any) -> None:
        """Say that a node is taken away in ten minutes, as a cloud does of a spot instance."""
        from ray._raylet import GcsClient  # type: ignore[attr-defined]
        from ray.core.generated import autoscaler_pb2

        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline = int((time.time() + NOTICE_SECONDS) * 1000)
        accepted, why = GcsClient(address=self.address).drain_node(
            node.node_id, reason, "a spot instance", deadline
        )
        if not accepted:
            raise RuntimeError(f"node {node.node_id} is not drained: {why}")
