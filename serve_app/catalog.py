"""The application at `/`: the page, what this server is, whether it is ready, and its models."""

from __future__ import annotations

import asyncio
from functools import partial
from reprlib import repr as shown
from typing import Any

from ray import serve
from ray.serve.config import BackpressureConfig

from serve_app.asgi import guarded
from serve_app.asking import Asking
from serve_app.config import CatalogOptions, parse_options
from serve_app.directory import MODELS, Directory
from serve_app.errors import RequestError, bad_request
from serve_app.keys import ADMIN, open_keys
from serve_app.limits import read_body
from serve_app.logs import begin_logging
from serve_app.meters import Meters
from serve_app.metrics import Exporter, figures_of_requests
from serve_app.oip.grpc_catalog import CatalogCalls
from serve_app.oip.identity import declared, server_metadata
from serve_app.openapi.docs import catalog_docs
from serve_app.pages import page_routes
from serve_app.ray_metrics import RaySink
from serve_app.replies import Reply, json_reply
from serve_app.request import Request
from serve_app.routing import Api, Routes
from serve_app.serve_peers import COUNT_SECONDS, Replicas
from serve_app.statistics import Counters, model_statistics
from serve_app.uploads import parse_json
from serve_app.watch import Watch

# What Triton offers under these paths and we do not.
EXTENSIONS_OF_OTHERS = (
    "/v2/systemsharedmemory",
    "/v2/cudasharedmemory",
    "/v2/trace",
    "/v2/logging",
)
REPOSITORY = "/v2/repository/models"
NAMES = {"/v2": "server", "/openapi.json": "openapi.json"}
# What the catalog reads is smaller; HAProxy hands it over whole, so nobody is waited for.
MAX_BODY_BYTES = 1 << 16
UPLOAD_SECONDS = 10.0
# No call takes long here, and all of them together hold little: five, Serve's default, that wait
# for its controller or for a client would keep the page and health from everybody.
MAX_REQUESTS = 1000
REJECTED = 429


class Catalog(CatalogCalls):
    """Answers for the whole server."""

    def __init__(self, options: CatalogOptions) -> None:
        self._keys = open_keys(options.keys_file)
        self._has_docs = options.docs
        self._asking = Asking()
        self._directory = Directory(self._asking)
        self._replicas: dict[str, Replicas] = {}  # by application
        begin_logging()
        meters = Meters() if options.metrics else None
        self._watch = Watch(meters)
        self._watch.is_echoed = True  # by Serve, over HTTP
        self._exporter = (
            Exporter(partial(figures_of_requests, meters), RaySink()) if meters else None
        )

    @property
    def watch(self) -> Watch:
        """What sees the requests; those for a model are seen there."""
        return self._watch

    def __serve_build_asgi_app__(self) -> Api:
        """Return the HTTP application; Serve asks for it once, after the constructor."""
        open_to_all: Routes = {
            **page_routes(),
            **(catalog_docs() if self._has_docs else {}),
            "/v2": {"GET": self.get_server},
            "/v2/health/live": {"GET": self.get_live},
            "/v2/health/ready": {"GET": self.get_ready},
        }
        keyed: Routes = {
            "/v2/repository/index": {"POST": self.post_index},
            "/v2/models/stats": {"GET": self.get_stats},
            f"{REPOSITORY}/*/load": {"POST": self.post_load},
            f"{REPOSITORY}/*/unload": {"POST": self.post_unload},
        }
        routes = {**open_to_all, **guarded(keyed, self._keys)}
        return Api(
            routes,
            rewrite=_refuse_models,
            watch=self._watch,
            name_call=call_name,
            max_body_bytes=MAX_BODY_BYTES,
        )

    async def get_server(self, request: Request) -> Reply:
        """Answer who this is."""
        return json_reply(server_metadata())

    async def get_live(self, request: Request) -> Reply:
        """Answer that the server is up."""
        return json_reply({"live": True})

    async def get_ready(self, request: Request) -> Reply:
        """Answer 200 when every deployed model can be asked, else 503."""
        try:
            entries = await self._directory.entries()
        except RequestError as error:
            return json_reply({"live": True, "ready": False}, error.status)
        waiting = [entry.name for entry in entries if entry.state != "READY"]
        body = {"live": True, "ready": not waiting}
        return json_reply(
            body | ({"waiting_for": waiting} if waiting else {}), 503 if waiting else 200
        )

    async def post_index(self, request: Request) -> Reply:
        """List the models; with `{"ready": true}` only those that can be asked."""
        asked = await _read_object(request)
        if type(asked.get("ready", False)) is not bool:
            raise bad_request('expected {} or {"ready": true}')
        return json_reply(
            [
                {"name": e.name, "version": e.version, "state": e.state, "reason": e.reason}
                for e in await self._directory.entries()
                if e.state == "READY" or not asked.get("ready")
            ]
        )

    async def get_stats(self, request: Request) -> Reply:
        """Return the counters of every model that is ready."""
        ready = [e for e in await self._directory.entries() if e.state == "READY"]
        counted = await asyncio.gather(*(self._count(entry.application) for entry in ready))
        return json_reply(
            {
                "model_stats": [
                    model_statistics(entry.name, entry.version, counters)
                    for entry, counters in zip(ready, counted, strict=True)
                ]
            }
        )

    async def post_load(self, request: Request) -> Reply:
        """Answer that a model is loaded, where it is: nothing is ever loaded by a call."""
        self._keys.require(request.headers, ADMIN)
        name = _model_in(request)
        asked = await _read_object(request)
        if asked.get("parameters"):
            raise declared(f"load {shown(name)} with another configuration or other files")
        entries = [e for e in await self._directory.entries() if e.name == name]
        if not entries:
            raise _unknown_model(name)
        for entry in entries:
            if entry.state != "READY":
                raise RequestError(
                    503, "not_ready", f"model {shown(name)} is {entry.state}: {entry.reason}"
                )
        return Reply(b"")

    async def post_unload(self, request: Request) -> Reply:
        """Refuse: what is served stands in the serve file."""
        self._keys.require(request.headers, ADMIN)
        name = _model_in(request)
        if all(entry.name != name for entry in await self._directory.entries()):
            raise _unknown_model(name)
        raise declared(f"unload {shown(name)}")

    async def _count(self, application: str) -> list[Counters]:
        replicas = self._replicas.setdefault(application, Replicas(application, self._asking))
        found = await replicas.call("statistics", COUNT_SECONDS)
        return [counters for counters in found if counters is not None]

    def __del__(self) -> None:
        # The constructor may have failed before there was one.
        exporter: Exporter | None = getattr(self, "_exporter", None)
        if exporter is not None:
            exporter.close()


def build(args: dict[str, Any]) -> serve.Application:
    """Return the application. Raises `ConfigError` naming what is wrong in `args`."""
    options = parse_options(CatalogOptions, args, "serve_app.catalog:build")
    deployment = serve.deployment(
        serve.ingress()(Catalog),
        name="catalog",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=MAX_REQUESTS,
        max_queued_requests=MAX_REQUESTS,
        backpressure_config=BackpressureConfig(status_code=REJECTED, retry_after_s=1),
    )
    application: serve.Application = deployment.bind(options)
    return application


def call_name(path: str) -> str:
    """Return the name that a route has in metrics: that of the call over gRPC, where there is one;
    `page` for all that is for people.
    """
    below = path.removeprefix("/v2/")
    return NAMES.get(path) or (below.rpartition("/")[2] if below != path else "page")


async def _read_object(request: Request) -> dict[str, Any]:
    body = await read_body(request, MAX_BODY_BYTES, UPLOAD_SECONDS)
    value = parse_json(body) if body.strip() else {}
    if not isinstance(value, dict):
        raise bad_request(f"expected a JSON object, got {type(value).__name__}", "bad_json")
    return value


def _model_in(request: Request) -> str:
    name: str = request.scope["path"].rstrip("/").split("/")[-2]
    return name


def _refuse_models(path: str) -> str:
    """A model's path only comes here when no application serves that model, and an extension's
    when we have none of it.
    """
    if path.startswith(MODELS) and path != f"{MODELS}stats":
        raise _unknown_model(path.split("/")[3])
    for extension in EXTENSIONS_OF_OTHERS:
        if path.startswith(extension):
            raise RequestError(501, "not_offered", f"this server has no {extension!r}")
    return path


def _unknown_model(name: str) -> RequestError:
    return RequestError(
        404, "unknown_model", f"no model {shown(name)} here; POST /v2/repository/index lists them"
    )
