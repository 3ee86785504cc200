"""`build`: from the `args` in a serve file to the Serve application of one model."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ray
from ray import serve

# For developers, says Ray, but its public API knows the sum of all nodes only.
from ray._private.state import available_resources_per_node
from ray.serve.config import AutoscalingConfig, BackpressureConfig

from models.engines.base import Feeding
from models.engines.torch_engine import MAX_BATCH
from models.errors import ConfigError
from serve_app.admission import busy_requests
from serve_app.config import ServeOptions, parse_options
from serve_app.directory import DEPLOYMENT
from serve_app.replica import Replica

# Serve's own limits stand behind ours (`admission`), whose refusals have the error form: above them
# there is room for calls that cost nothing, and for refusing.
ROOM = 1000
REJECTED = 429
# By this Serve finds a replica that was killed: with its 10 s, the next one came 12 s later.
HEALTH_CHECK_SECONDS = 2
# A replica that hangs is given up after three looks without an answer: with Serve's 30 s each, 94 s
# later. A replica answers them beside its requests, so 5 s are a thousand times what it needs.
HEALTH_CHECK_TIMEOUT_SECONDS = 5
# One process with two threads answers 4 to 6 % more than two with one on 2 cores, and takes 0.2 GiB
# less. Beyond four, reckoned, its one interpreter would be the limit: busy for 0.7 ms an image.
CORES_PER_REPLICA = 4
# A replica that leaves goes on taking requests until every proxy knows it: 30 s by Serve's default,
# and 5 s by which it ends the rest.
SECONDS_REACHABLE = 35.0
# New replicas that may stand beside the old ones. With none, an update to a bundle that fails its
# proof would take the last replica first.
SURGE_PERCENT = 20
# Of the requests that a replica has at most under overload: what it may be meant to have. Close to
# all of them, a replica would look idle just when it refuses.
MAX_TARGET_SHARE = 2 / 3


def build(args: dict[str, Any]) -> serve.Application:
    """Return the application. Raises `ConfigError` naming what is wrong in `args`."""
    options = _laid_out(parse_options(ServeOptions, args, "serve_app.app:build"))
    scale: dict[str, Any] = (
        {"autoscaling_config": scaling_of(options, options.autoscaling)}
        if options.autoscaling is not None
        else {"num_replicas": options.replicas}
    )
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name=DEPLOYMENT,
        **scale,
        max_surge_percent=_surge_percent(options),
        graceful_shutdown_timeout_s=seconds_to_leave(options),
        health_check_period_s=HEALTH_CHECK_SECONDS,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_SECONDS,
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        max_ongoing_requests=options.max_requests + ROOM,
        max_queued_requests=ROOM,
        backpressure_config=BackpressureConfig(
            status_code=REJECTED, retry_after_s=options.retry_after_seconds
        ),
    )
    application: serve.Application = deployment.bind(options)
    return application


def seconds_to_leave(options: ServeOptions) -> float:
    """Return how long a replica that leaves may take: it is killed then, whatever it has."""
    return SECONDS_REACHABLE + options.limits.upload_seconds + options.deadline_seconds


def scaling_of(options: ServeOptions, settings: dict[str, Any]) -> AutoscalingConfig:
    """Return how a deployment scales. Raises `ConfigError` for settings that Serve does not know,
    and for a target that no overload would reach.
    """
    try:
        scaling = AutoscalingConfig(**settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"args of serve_app.app:build: autoscaling = {settings}: {error}"
        ) from error
    target = float(scaling.get_target_ongoing_requests())
    bound = _num_inside_under_overload(options)
    if target > bound * MAX_TARGET_SHARE:
        raise ConfigError(
            f"args of serve_app.app:build: autoscaling: target_ongoing_requests = {target:g}, but "
            f"a replica has no more than {bound} requests at a time when it refuses others, so "
            f"that Serve would never start another one; set it to {bound * MAX_TARGET_SHARE:.3g} "
            "or less, or raise busy_requests, or threads with num_cpus"
        )
    return scaling


def _num_inside_under_overload(options: ServeOptions) -> int:
    """Return it for the engine that lets in the fewest, of those that may be opened."""
    engine = options.engine_options
    if engine.device == "cpu" and "openvino" in engine.engines:
        return busy_requests(options, Feeding("streams", engine.num_threads, 1))
    batches = Feeding("batches", 1, MAX_BATCH[engine.device])
    return busy_requests(options, batches)


def _surge_percent(options: ServeOptions) -> int:
    """Return the share of new replicas that may stand beside the old ones: none where no room is
    free for another one now, since an update would wait for it, for ever if need be.
    """
    if options.max_surge_percent is not None:
        return options.max_surge_percent
    wanted = {"CPU": options.num_cpus, "GPU": options.num_gpus}
    return SURGE_PERCENT if has_room(wanted, available_resources_per_node().values()) else 0


def has_room(wanted: Mapping[str, float], nodes: Iterable[Mapping[str, float]]) -> bool:
    """Say whether one of the nodes alone has free what a replica wants: half a CPU here and half a
    CPU there start none.
    """
    return any(all(free.get(name, 0) >= wanted[name] for name in wanted) for free in nodes)


def _laid_out(options: ServeOptions) -> ServeOptions:
    """Return the options with as many replicas as fill the cluster as it is, where they say neither
    how many nor that they scale; and with their threads, where nothing is said of these either.
    """
    if options.replicas is not None or options.autoscaling is not None:
        return options
    if options.num_gpus:
        replicas = max(1, int(ray.cluster_resources().get("GPU", 0) / options.num_gpus))
        return options.model_copy(update={"replicas": replicas})
    return filling(options, cores_of(ray.nodes(), ray.get_runtime_context().get_node_id()))


def filling(options: ServeOptions, nodes: Sequence[int]) -> ServeOptions:
    """Return the options with as many replicas as fill nodes of so many cores.

    Logical CPUs may be more than the machine has, and a thread that runs images keeps a real core
    busy, so the cores count: those that the threads of a replica take, or that it reserves.
    """
    if options.threads is None and "num_cpus" not in options.model_fields_set:
        replicas, threads = spread_over(nodes)
        return options.model_copy(update={"replicas": replicas, "threads": threads})
    taken = max(options.engine_options.num_threads, options.num_cpus)
    replicas = max(1, sum(int(cores // taken) for cores in nodes))
    return options.model_copy(update={"replicas": replicas})


def cores_of(nodes: Iterable[Mapping[str, Any]], here: str) -> list[int]:
    """Return the cores of each node that is alive: its CPUs for Ray, of which this node, whose id
    is `here`, may have been given more than it has.
    """
    cores = []
    for node in nodes:
        if node["Alive"]:
            cpus = int(node["Resources"].get("CPU", 0))
            is_here = node["NodeID"] == here
            cores.append(min(cpus, len(os.sched_getaffinity(0))) if is_here else cpus)
    return cores


def spread_over(nodes: Iterable[int]) -> tuple[int, int]:
    """Return how many replicas fill nodes of so many cores, and how many threads each has: what
    suits the smallest node, since all replicas are alike. A head without CPUs counts for nothing.
    """
    with_cores = [cores for cores in nodes if cores > 0] or [1]
    threads = min(threads_per_replica(cores) for cores in with_cores)
    return sum(cores // threads for cores in with_cores), threads


def threads_per_replica(cores: int) -> int:
    """Return how many threads each replica of one node has: equal shares of its cores, and no more
    than `CORES_PER_REPLICA`.
    """
    return cores // math.ceil(cores / CORES_PER_REPLICA)
