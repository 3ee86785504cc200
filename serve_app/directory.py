"""Which models are served, as Serve tells: name, version, route, state.

It knows of no model in advance: it asks Serve which applications run, and their replicas which
model they hold. An application counts as a model when its deployment is named `DEPLOYMENT`. Answers
are kept for a second, which spares the controller.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.serve.context import _get_global_client

from models.errors import ConfigError
from models.manifest import Manifest
from serve_app.logs import OURS

logger = logging.getLogger(OURS)

DEPLOYMENT = "model"  # the name in Serve of every deployment that serves a model
MODELS = "/v2/models/"
MAX_AGE_SECONDS = 1.0
DESCRIBE_TIMEOUT_SECONDS = 2.0
LOADING = ("DEPLOYING", "NOT_STARTED")


@dataclass(frozen=True)
class Entry:
    """One application that serves a model."""

    application: str
    name: str
    version: str
    state: str  # READY, LOADING or UNAVAILABLE, the words of the protocol
    reason: str


class Directory:
    """Reads the list of models when asked for it."""

    def __init__(self) -> None:
        self._described: dict[str, tuple[float, dict[str, str]]] = {}
        self._entries: Sequence[Entry] = ()
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def entries(self) -> Sequence[Entry]:
        """Return the models, in the order of their applications."""
        async with self._reading:
            if time.monotonic() - self._read_at > MAX_AGE_SECONDS:
                applications = await asyncio.to_thread(_applications)
                self._entries = await asyncio.gather(
                    *(
                        self._entry(name, details)
                        for name, details in applications.items()
                        if DEPLOYMENT in details["deployments"] or not details["deployments"]
                    )
                )
                self._read_at = time.monotonic()
            return self._entries

    async def _entry(self, application: str, details: dict[str, Any]) -> Entry:
        deployment = details["deployments"].get(DEPLOYMENT, {})
        if details["status"] == "RUNNING" and deployment.get("target_num_replicas") == 0:
            # It sleeps, and wakes when it is asked.
            model = self._known(application, details)
            return Entry(application, model["name"], model["version"], "READY", "")
        if not _num_running(details):
            state = "LOADING" if details["status"] in LOADING else "UNAVAILABLE"
            reason = " ".join(
                part for part in (details["message"], deployment.get("message", "")) if part
            )
            return Entry(application, application, "", state, reason)
        model = await self._describe(application, details["last_deployed_time_s"])
        return Entry(application, model["name"], model["version"], "READY", "")

    def _known(self, application: str, details: dict[str, Any]) -> dict[str, str]:
        """Return what is known of a model that has no replica to ask."""
        deployed, model = self._described.get(application, (None, {}))
        if deployed == details["last_deployed_time_s"]:
            return model
        route = details["route_prefix"] or ""
        name, _, version = route.removeprefix(MODELS).partition("/versions/")
        return {"name": name if route.startswith(MODELS) else application, "version": version}

    async def _describe(self, application: str, deployed: float) -> dict[str, str]:
        """Ask a replica which model it holds; the answer holds until the next deployment."""
        known = self._described.get(application)
        if known is None or known[0] != deployed:
            asking = serve.get_app_handle(application).describe.remote()
            try:
                answer = await asyncio.wait_for(asking, DESCRIBE_TIMEOUT_SECONDS)
            # a busy or dying replica must not take the list down with it
            except Exception as error:
                asking.cancel()
                logger.warning("application %r does not say what it holds: %s", application, error)
                return {"name": application, "version": ""}
            known = (deployed, answer)
            self._described[application] = known
        return known[1]


def check_route(application: str, manifest: Manifest) -> None:
    """Raise `ConfigError` if an application's route is not the path of the model it holds: its
    clients and the list of models would not agree on where it is.
    """
    route = _applications().get(application, {}).get("route_prefix")
    path = f"{MODELS}{manifest.name}"
    allowed = (path, f"{path}/versions/{manifest.version}")
    if route is not None and route not in allowed:
        raise ConfigError(
            f"application {application!r} has the route_prefix {route!r} but holds the model "
            f"{manifest.label}; set it to {allowed[0]}, or to {allowed[1]} to serve this version "
            "beside another"
        )


def num_running(application: str) -> int:
    """Return how many replicas of an application run, as the controller sees it."""
    return _num_running(_applications().get(application, {"deployments": {}}))


def _num_running(details: dict[str, Any]) -> int:
    replicas = details["deployments"].get(DEPLOYMENT, {}).get("replicas", ())
    return sum(replica["state"] == "RUNNING" for replica in replicas)


def _applications() -> dict[str, Any]:
    """Return Serve's details of its applications; `serve.status` has them without the routes."""
    applications: dict[str, Any] = _get_global_client().get_serve_details()["applications"]
    return applications
