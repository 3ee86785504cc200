"""`build`: from the `args` in a serve file to the Serve application of one model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray import serve

# For developers, says Ray, but its public API knows the sum of all nodes only.
from ray._private.state import available_resources_per_node
from ray.serve.config import AutoscalingConfig, BackpressureConfig

from models.errors import ConfigError
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
# New replicas that may stand beside the old ones. With none, an update to a bundle that fails its
# proof would take the last replica first.
SURGE_PERCENT = 20


def build(args: dict[str, Any]) -> serve.Application:
    """Return the application. Raises `ConfigError` naming what is wrong in `args`."""
    options = parse_options(ServeOptions, args, "serve_app.app:build")
    scale: dict[str, Any] = (
        {"autoscaling_config": _autoscaling(options.autoscaling)}
        if options.autoscaling is not None
        else {"num_replicas": options.replicas or _num_fitting(options)}
    )
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name=DEPLOYMENT,
        **scale,
        max_surge_percent=_surge_percent(options),
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


def _autoscaling(settings: dict[str, Any]) -> AutoscalingConfig:
    try:
        return AutoscalingConfig(**settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"args of serve_app.app:build: autoscaling = {settings}: {error}"
        ) from error


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


def _num_fitting(options: ServeOptions) -> int:
    """Return how many replicas fill the cluster as it is: one per GPU (or part of one), else per
    CPU.

    Logical CPUs may be more than the machine has; a replica keeps a real core busy, so the cores
    count.
    """
    total = ray.cluster_resources()
    if options.num_gpus:
        return max(1, int(total.get("GPU", 0) / options.num_gpus))
    num_nodes = max(1, len([node for node in ray.nodes() if node["Alive"]]))
    cores = min(total.get("CPU", 0), len(os.sched_getaffinity(0)) * num_nodes)
    return max(1, int(cores / (options.num_cpus or 1)))
