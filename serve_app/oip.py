"""The Open Inference Protocol for one model over HTTP: metadata, readiness, configuration,
inference.

`tritonclient.http` and KServe's client speak it. How a body is read is in `infer_json`, what a
model says of itself in `signature`.
"""

from __future__ import annotations

from starlette.requests import Request

from serve_app.infer import infer
from serve_app.infer_json import LENGTH_HEADER, infer_reply, parse_infer
from serve_app.limits import read_body
from serve_app.model import ServedModel
from serve_app.replies import Reply, json_reply
from serve_app.routing import Handler, Routes
from serve_app.signature import WHOLE, View, config_of, metadata_of, views_of


def oip_routes(model: ServedModel) -> Routes:
    """Return the protocol's routes below the model's own path."""
    view = views_of(model.manifest, model.kind)[WHOLE]
    metadata = metadata_of(model, view)

    async def get_metadata(request: Request) -> Reply:
        return json_reply(metadata)

    async def get_ready(request: Request) -> Reply:
        await model.check()
        return json_reply({"name": model.manifest.name, "ready": True})

    async def get_config(request: Request) -> Reply:
        return json_reply(config_of(model, view))

    return {
        "/infer": {"POST": post_infer(model, view)},
        "": {"GET": get_metadata},
        "/ready": {"GET": get_ready},
        "/config": {"GET": get_config},
    }


def post_infer(model: ServedModel, view: View) -> Handler:
    """Return the call that runs images given as tensors."""

    async def call(request: Request) -> Reply:
        body = await read_body(request, model.limits.max_body_bytes, model.limits.upload_seconds)
        asked = parse_infer(body, request.headers.get(LENGTH_HEADER), view, model.limits)
        answered = await infer(model, asked)
        return infer_reply(model.manifest.name, model.manifest.version, asked.wanted, answered)

    return call
