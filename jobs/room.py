"""Room in a cluster for processes that are all needed at once. Where there is too little, a cluster
that grows is asked for it and waited for.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from cluster.environment import FIXED
from models.errors import ConfigError

logger = logging.getLogger(__name__)

Resources = Mapping[str, float]  # by Ray's names, such as "CPU" and "GPU"

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_LINES = 30.0
PARTS = 10_000  # Ray counts a CPU or GPU in so many


def await_room(
    bundles: Sequence[Resources],
    seconds: float,
    advice: str,
    look: Callable[[], None] = lambda: None,
) -> None:
    """Return when the cluster's nodes can hold all `bundles`, each on one node, whoever else is on
    them now. `look` is called every second of waiting, and may raise.

    To be called by a driver. A placement group asks for the room: the autoscaler counts those that
    wait as demand, and it goes with the driver if that is killed, where what `request_resources`
    asks for would stay for ever. (That of an actor would stay until the job ends.)

    Raises `ConfigError`, which ends with `advice`, if there is too little after so many seconds: at
    once in a Ray that gets no nodes, one of ours.
    """
    if fits(bundles, node_resources()):
        return
    short = f"there is no room for {describe(bundles)}: the cluster has {describe_nodes()}"
    if is_fixed():
        raise ConfigError(f"{short}. {advice}")
    group = placement_group([dict(bundle) for bundle in bundles], strategy="PACK")
    try:
        _wait(group, bundles, seconds, short, advice, look)
    finally:
        with suppress(Exception):  # of a Ray that has ended; what is raised already counts
            remove_placement_group(group)


def _wait(
    group: PlacementGroup,
    bundles: Sequence[Resources],
    seconds: float,
    short: str,
    advice: str,
    look: Callable[[], None],
) -> None:
    began, told = time.monotonic(), -math.inf
    while placement_group_table(group).get("state") != "CREATED":
        # Room that others have is waited for by Ray itself, as without us.
        if fits(bundles, node_resources()):
            break
        waited = time.monotonic() - began
        if waited > seconds:
            raise ConfigError(
                f"after {seconds:g} s there is still no room for {describe(bundles)}: the cluster "
                f"has {describe_nodes()}. {advice}"
            )
        if waited - told > SECONDS_BETWEEN_LINES:
            told = waited
            logger.warning(
                "%s; waiting %.0f s more for nodes (workers.wait_seconds; Ctrl-C ends it)",
                short,
                seconds - waited,
            )
        time.sleep(SECONDS_BETWEEN_LOOKS)
        look()
    logger.warning("the nodes have come after %.0f s", time.monotonic() - began)


def is_fixed() -> bool:
    """Say whether this Ray is known to get no nodes: it runs on this machine alone, and we have
    started it, for this command or with `python -m cluster.session up`.
    """
    if not os.environ.get("RAY_ADDRESS"):
        return True
    return any(FIXED in node.get("Labels", {}) for node in ray.nodes())


def fits(bundles: Iterable[Resources], nodes: Iterable[Resources]) -> bool:
    """Say whether nodes hold all bundles, each on one of them: those with a GPU first, the largest
    first, each on the first node that has room, of those with fewer GPUs.
    """
    free = sorted((_parts(node) for node in nodes), key=lambda node: node.get("GPU", 0))
    wanted = [_parts(bundle) for bundle in bundles]
    wanted.sort(key=lambda each: (each.get("GPU", 0), sum(each.values())), reverse=True)
    for bundle in wanted:
        for node in free:
            if all(node.get(name, 0) >= amount for name, amount in bundle.items()):
                for name, amount in bundle.items():
                    node[name] = node.get(name, 0) - amount
                break
        else:
            return False
    return True


def _parts(resources: Resources) -> dict[str, int]:
    return {name: round(PARTS * amount) for name, amount in resources.items()}


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
