"""The application at `/`: the page, what this server is, whether it is ready, and its models.

It knows of no model in advance: it asks Serve which applications run, and their replicas which
model they hold. An application counts as a model when its deployment is named as in
`serve_app.replica`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ray import serve
from ray.serve.schema import ApplicationStatusOverview
from starlette.requests import Request

from serve_app.config import CatalogOptions, parse_options
from serve_app.errors import RequestError, bad_request
from serve_app.limits import read_body
from serve_app.pages import page_routes
from serve_app.replica import DEPLOYMENT
from serve_app.replies import Reply, json_reply
from serve_app.routing import Api
from serve_app.uploads import parse_json

logger = logging.getLogger("ray.serve")

NAME = "sightline"
EXTENSIONS = ("binary_tensor_data", "classification", "model_repository")
MAX_AGE_SECONDS = 1.0  # how old an answer about the applications may be; spares the controller
MAX_BODY_BYTES = 1 << 20
UPLOAD_SECONDS = 10.0
DESCRIBE_TIMEOUT_SECONDS = 2.0


@dataclass(frozen=True)
class Entry:
    """One application that serves a model."""

    name: str
    version: str
    state: str  # READY, LOADING or UNAVAILABLE, the words of the protocol
    reason: str


class Catalog:
    """Answers for the whole server."""

    def __init__(self) -> None:
        self._described: dict[str, tuple[float, dict[str, str]]] = {}
        self._entries: list[Entry] = []
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    def __serve_build_asgi_app__(self) -> Api:
        """Return the HTTP application; Serve asks for it once, after the constructor."""
        return Api(
            {
                **page_routes(),
                "/v2": {"GET": self.get_server},
                "/v2/health/live": {"GET": self.get_live},
                "/v2/health/ready": {"GET": self.get_ready},
                "/v2/repository/index": {"POST": self.post_index},
            },
            rewrite=_refuse_models,
        )

    async def get_server(self, request: Request) -> Reply:
        """Answer who this is."""
        return json_reply({"name": NAME, "version": _version(), "extensions": EXTENSIONS})

    async def get_live(self, request: Request) -> Reply:
        """Answer that the server is up."""
        return json_reply({"live": True})

    async def get_ready(self, request: Request) -> Reply:
        """Answer 200 when every deployed model can be asked, else 503."""
        waiting = [entry.name for entry in await self._read() if entry.state != "READY"]
        body = {"live": True, "ready": not waiting}
        return json_reply(
            body | ({"waiting_for": waiting} if waiting else {}), 503 if waiting else 200
        )

    async def post_index(self, request: Request) -> Reply:
        """List the models; with `{"ready": true}` only those that can be asked."""
        body = await read_body(request, MAX_BODY_BYTES, UPLOAD_SECONDS)
        asked = parse_json(body) if body.strip() else {}
        if not isinstance(asked, dict) or type(asked.get("ready", False)) is not bool:
            raise bad_request('expected {} or {"ready": true}')
        entries = await self._read()
        return json_reply(
            [
                {"name": e.name, "version": e.version, "state": e.state, "reason": e.reason}
                for e in entries
                if e.state == "READY" or not asked.get("ready")
            ]
        )

    async def _read(self) -> list[Entry]:
        async with self._reading:
            if time.monotonic() - self._read_at > MAX_AGE_SECONDS:
                status = await asyncio.to_thread(serve.status)
                found = await asyncio.gather(
                    *(
                        self._entry(name, application)
                        for name, application in status.applications.items()
                        if DEPLOYMENT in application.deployments or not application.deployments
                    )
                )
                self._entries, self._read_at = found, time.monotonic()
            return self._entries

    async def _entry(self, application: str, status: ApplicationStatusOverview) -> Entry:
        deployment = status.deployments.get(DEPLOYMENT)
        replicas = deployment.replica_states if deployment else {}
        if not replicas.get("RUNNING"):
            state = "LOADING" if status.status in ("DEPLOYING", "NOT_STARTED") else "UNAVAILABLE"
            return Entry(application, "", state, status.message)
        model = await self._describe(application, status.last_deployed_time_s)
        return Entry(model["name"], model["version"], "READY", "")

    async def _describe(self, application: str, deployed: float) -> dict[str, str]:
        """Ask a replica which model it holds; the answer holds until the next deployment."""
        known = self._described.get(application)
        if known is None or known[0] != deployed:
            handle = serve.get_app_handle(application)
            asking = handle.describe.remote()
            try:
                answer = await asyncio.wait_for(asking, DESCRIBE_TIMEOUT_SECONDS)
            # a busy or dying replica must not take the catalog down with it
            except Exception as error:
                asking.cancel()
                logger.warning("application %r does not say what it holds: %s", application, error)
                return {"name": application, "version": ""}
            known = (deployed, answer)
            self._described[application] = known
        return known[1]


def build(args: dict[str, Any]) -> serve.Application:
    """Return the application. It takes no settings; unknown ones raise `ConfigError`."""
    parse_options(CatalogOptions, args, "serve_app.catalog:build")
    deployment = serve.deployment(
        serve.ingress()(Catalog), name="catalog", num_replicas=1, ray_actor_options={"num_cpus": 0}
    )
    application: serve.Application = deployment.bind()
    return application


def _refuse_models(path: str) -> str:
    """A model's path only comes here when no application serves that model."""
    if path.startswith("/v2/models/"):
        name = path.split("/")[3]
        raise RequestError(
            404, "unknown_model", f"no model {name!r} here; POST /v2/repository/index lists them"
        )
    return path


def _version() -> str:
    try:
        return version(NAME)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
