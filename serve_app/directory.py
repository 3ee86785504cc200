"""Which models are served, as Serve tells: name, version, route, state.

It knows of no model in advance: it asks Serve which applications run, and their replicas which
model they hold. An application counts as a model when its deployment is named `DEPLOYMENT`. Answers
are kept for a second, which spares the controller; it is asked off the event loop and not for ever.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentResponse

from models.errors import ConfigError
from models.manifest import Manifest
from serve_app.asking import Asking
from serve_app.errors import RequestError
from serve_app.logs import OURS

logger = logging.getLogger(OURS)

DEPLOYMENT = "model"  # the name in Serve of every deployment that serves a model
MODELS = "/v2/models/"
MAX_AGE_SECONDS = 1.0
# For the whole list, longer than the 2.4 s after which a controller that was killed answers again;
# and for a replica to say what it holds.
PATIENCE_SECONDS, DESCRIBE_SECONDS = 5.0, 2.0
# What a replica said that it holds is believed for so long.
MAX_TOLD_SECONDS = 10.0
LOADING = ("DEPLOYING", "NOT_STARTED")


@dataclass(frozen=True)
class Entry:
    """One application that serves a model."""

    application: str
    name: str
    version: str
    state: str  # READY, LOADING or UNAVAILABLE, the words of the protocol
    reason: str


@dataclass(frozen=True)
class _Told:
    """What a replica said it holds."""

    deployed: float
    until: float
    model: dict[str, str]


class Directory:
    """Reads the list of models when asked for it."""

    def __init__(self, asking: Asking | None = None) -> None:
        """Asks on a thread of its own if `asking` is None."""
        self._asking = asking or Asking()
        self._described: dict[str, _Told] = {}
        self._entries: Sequence[Entry] = ()
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def entries(self) -> Sequence[Entry]:
        """Return the models, in the order of their applications.

        Raises `RequestError` (503) where Serve's controller does not answer.
        """
        if time.monotonic() - self._read_at > MAX_AGE_SECONDS:
            if self._reading is None:
                self._reading = asyncio.create_task(self._read())
            # Whoever asks meanwhile waits for the same list, and takes it from nobody by leaving.
            await asyncio.shield(self._reading)
        return self._entries

    async def _read(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                applications = await self._asking.answer(_applications)
                self._entries = await asyncio.gather(
                    *(
                        self._entry(name, details)
                        for name, details in applications.items()
                        if DEPLOYMENT in details["deployments"] or not details["deployments"]
                    )
                )
            self._read_at = time.monotonic()
        except TimeoutError as error:
            raise RequestError(
                503,
                "not_ready",
                f"Serve's controller has not answered for {PATIENCE_SECONDS:g} s, so which models "
                "are served is not known; models are scored all the same",
            ) from error
        finally:
            self._reading = None

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
        model = await self._describe(application, details)
        return Entry(application, model["name"], model["version"], "READY", "")

    def _known(self, application: str, details: dict[str, Any]) -> dict[str, str]:
        """Return what is known of a model that has no replica to ask."""
        known = self._described.get(application)
        is_same = known is not None and known.deployed == details["last_deployed_time_s"]
        if known is not None and is_same and known.until > -math.inf:
            return known.model
        route = details["route_prefix"] or ""
        name, _, version = route.removeprefix(MODELS).partition("/versions/")
        return {"name": name if route.startswith(MODELS) else application, "version": version}

    async def _describe(self, application: str, details: dict[str, Any]) -> dict[str, str]:
        """Ask a replica which model it holds.

        The answer is kept for a while, but for one of a deployment that is under way, which may be
        an old replica's. Where nobody answers, the one before counts.
        """
        deployed = details["last_deployed_time_s"]
        known = self._described.get(application)
        is_same = known is not None and known.deployed == deployed
        if known is not None and is_same and time.monotonic() < known.until:
            return known.model
        described: DeploymentResponse[dict[str, str]] | None = None
        try:
            async with asyncio.timeout(DESCRIBE_SECONDS):
                handle = await self._asking.answer(serve.get_app_handle, application)
                described = handle.describe.remote()
                model: dict[str, str] = await described
        # a busy or dying replica must not take the list down with it
        except Exception as error:
            if described is not None:
                described.cancel()
            logger.warning("application %r does not say what it holds: %s", application, error)
            return {"name": application, "version": ""} if known is None else known.model
        is_running = details["status"] == "RUNNING"
        until = time.monotonic() + MAX_TOLD_SECONDS if is_running else -math.inf
        self._described[application] = _Told(deployed, until, model)
        return model


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
