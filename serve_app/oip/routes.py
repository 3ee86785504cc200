"""The Open Inference Protocol for one model over HTTP: metadata, readiness, configuration,
statistics, inference.

`tritonclient.http` and KServe's client speak it. How a body is read is in `infer_json`, what a
model says of itself in `signature`. A client that insists on one input and one output takes
`{path of the model}/views/{input}` for the address of its server: there stands a server of its own,
with this model in that view.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from serve_app.compression import compressed_reply
from serve_app.errors import RequestError
from serve_app.limits import read_body
from serve_app.model import ServedModel
from serve_app.oip.identity import server_metadata
from serve_app.oip.infer import BYTES_ASIDE, infer, parse_aside
from serve_app.oip.infer_json import (
    LENGTH_HEADER,
    infer_reply,
    json_length,
    json_weight,
    num_bytes_read,
    parse_infer,
)
from serve_app.oip.signature import WHOLE, View, config_of, metadata_of, views_of
from serve_app.oip.tensors import Answered
from serve_app.peers import Peers
from serve_app.replies import Reply, json_reply
from serve_app.request import Request
from serve_app.routing import Handler, Routes
from serve_app.statistics import model_statistics

VIEWS = "/views"


def oip_routes(model: ServedModel, peers: Peers) -> Routes:
    """Return the protocol's routes below the model's own path, views included."""
    views = views_of(model.manifest, model.kind)
    calls = {name: _calls(model, peers, view) for name, view in views.items()}
    routes = dict(calls.pop(WHOLE))
    base = f"/v2/models/{model.manifest.name}"
    for name, below in calls.items():
        server = f"{VIEWS}/{name}"
        routes |= {f"{server}{path}": methods for path, methods in _server(model).items()}
        for path, methods in below.items():
            routes[f"{server}{base}{path}"] = methods
            routes[f"{server}{base}/versions/{model.manifest.version}{path}"] = methods
    return routes


async def statistics_of(model: ServedModel, peers: Peers) -> dict[str, Any]:
    """Return the counters of all replicas of a model in Triton's form."""
    counted = await peers.statistics()
    one = model_statistics(model.manifest.name, str(model.manifest.version), counted)
    return {"model_stats": [one], "replicas": len(counted)}


def _calls(model: ServedModel, peers: Peers, view: View) -> Routes:
    metadata = metadata_of(model, view)

    async def get_metadata(request: Request) -> Reply:
        return json_reply({**metadata, "versions": [str(v) for v in await peers.versions()]})

    async def get_ready(request: Request) -> Reply:
        await model.check()
        return json_reply({"name": model.manifest.name, "ready": True})

    async def get_config(request: Request) -> Reply:
        return json_reply(config_of(model, view))

    async def get_stats(request: Request) -> Reply:
        return json_reply(await statistics_of(model, peers))

    return {
        "/infer": {"POST": _infer(model, view)},
        "": {"GET": get_metadata},
        "/ready": {"GET": get_ready},
        "/config": {"GET": get_config},
        "/stats": {"GET": get_stats},
    }


def _infer(model: ServedModel, view: View) -> Handler:
    manifest, limits = model.manifest, model.limits

    async def call(request: Request) -> Reply:
        body = await read_body(
            request, limits.max_body_bytes, limits.upload_seconds, may_be_compressed=True
        )
        header = request.headers.get(LENGTH_HEADER.lower())
        length = json_length(header, len(body))
        note_size = request.note_size if length > BYTES_ASIDE else None
        if note_size is not None:
            weight = await asyncio.to_thread(json_weight, body, length)
            # One that is alone has room, however little there is.
            note_size(min(weight, limits.max_queued_bytes))
        asked = await parse_aside(length, parse_infer, body, header, view, limits)
        if note_size is not None:
            note_size(min(num_bytes_read(body, asked), limits.max_queued_bytes))

        # Files are views of it; what was read out of JSON would be kept twice.
        del body

        def write(answered: Answered) -> Reply:
            return infer_reply(manifest.name, manifest.version, asked.wanted, answered)

        reply = await infer(model, asked, write)
        return await compressed_reply(reply, request.headers.get("accept-encoding", ""))

    return call


def _server(model: ServedModel) -> Routes:
    """Return what a client asks a server before it asks for a model."""

    async def get_server(request: Request) -> Reply:
        return json_reply(server_metadata())

    async def get_live(request: Request) -> Reply:
        return json_reply({"live": True})

    async def get_ready(request: Request) -> Reply:
        try:
            await model.check()
        except RequestError as error:
            return json_reply({"live": True, "ready": False}, error.status)
        return json_reply({"live": True, "ready": True})

    handlers: Mapping[str, Handler] = {
        "/v2": get_server,
        "/v2/health/live": get_live,
        "/v2/health/ready": get_ready,
    }
    return {path: {"GET": handler} for path, handler in handlers.items()}
