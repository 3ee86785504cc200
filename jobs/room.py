"""Room in a cluster for processes that are all needed at once. Where there is too little, a cluster
that grows is asked for it and waited for.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import ray
from ray.util.placement_group import (
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from models.errors import ConfigError

logger = logging.getLogger(__name__)

Resources = Mapping[str, float]  # by Ray's names, such as "CPU" and "GPU"

SECONDS_BETWEEN_LOOKS = 1.0


def await_room(
    bundles: Sequence[Resources],
    seconds: float,
    advice: str,
    look: Callable[[], None] = lambda: None,
) -> None:
    """Return when the cluster's nodes can hold all `bundles`, each on one node, whoever else is on
    them now. `look` is called every second of waiting, and may raise.

    A placement group asks for the room, as the autoscaler counts those that wait as demand, and as
    it goes with this job if that is killed: what `request_resources` asks for stays for ever.

    Raises `ConfigError`, which ends with `advice`, if there is too little after so many seconds: at
    once for a Ray that this process started, which gets no nodes.
    """
    if fits(bundles, node_resources()):
        return
    short = f"there is no room for {describe(bundles)}: the cluster has {describe_nodes()}"
    if not os.environ.get("RAY_ADDRESS"):
        raise ConfigError(f"{short}. {advice}")
    logger.warning("%s; waiting up to %g s for nodes", short, seconds)
    group = placement_group([dict(bundle) for bundle in bundles], strategy="PACK")
    until = time.monotonic() + seconds
    try:
        while placement_group_table(group)["state"] != "CREATED":
            time.sleep(SECONDS_BETWEEN_LOOKS)
            look()
            if time.monotonic() > until:
                raise ConfigError(
                    f"there is still no room for {describe(bundles)} after {seconds:g} s: the "
                    f"cluster has {describe_nodes()}. {advice}"
                )
    finally:
        remove_placement_group(group)


def fits(bundles: Iterable[Resources], nodes: Iterable[Resources]) -> bool:
    """Say whether nodes hold all bundles, each on one of them: the largest first, each on the first
    node that has room.
    """
    free = [dict(node) for node in nodes]
    for bundle in sorted(bundles, key=lambda each: sorted(each.values()), reverse=True):
        for node in free:
            if all(node.get(name, 0.0) >= amount for name, amount in bundle.items()):
                for name, amount in bundle.items():
                    node[name] = node.get(name, 0.0) - amount
                break
        else:
            return False
    return True


def node_resources() -> list[Resources]:
    """Return what each living node has, in use or not."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def describe(bundles: Sequence[Resources]) -> str:
    """Return bundles in words."""
    counted: dict[str, int] = {}
    for bundle in bundles:
        words = _in_words(bundle)
        counted[words] = counted.get(words, 0) + 1
    return " and ".join(f"{count} x {words}" for words, count in counted.items())


def describe_nodes() -> str:
    """Return the nodes in words, such as `1 x 4 CPU and 2 x 8 CPU + 1 GPU`."""
    kept = ("CPU", "GPU")
    return describe([{name: node.get(name, 0.0) for name in kept} for node in node_resources()])


def _in_words(resources: Resources) -> str:
    """Return what is not zero, and the CPUs in any case."""
    kept = {name: amount for name, amount in resources.items() if amount or name == "CPU"}
    return " + ".join(f"{amount:g} {name}" for name, amount in kept.items())
