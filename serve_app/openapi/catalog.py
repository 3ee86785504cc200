"""The OpenAPI document of the server's own calls: health, the list of models, their counters, load
and unload. Each model has a document of its own.
"""

from __future__ import annotations

from typing import Any

from serve_app.oip.identity import EXTENSIONS, server_metadata
from serve_app.openapi.infer import statistics_schema
from serve_app.openapi.parts import (
    JSON,
    UPLOAD_CODES,
    Codes,
    Schema,
    answer,
    body,
    closed,
    document,
    in_path,
    json_answer,
    operation,
    ref,
)
from serve_app.statistics import model_statistics

TEXT: Schema = {"type": "string"}
STATES = ["READY", "LOADING", "UNAVAILABLE"]  # the words of the protocol
EXAMPLE = "elpv"
LIST_CODES: Codes = {503: ("not_ready",)}  # where Serve does not say which models there are
BODY_CODES: Codes = {
    **UPLOAD_CODES,
    400: ("bad_request", "bad_json"),
    413: ("body_too_large",),
    415: ("content_encoding",),
}


def catalog_document() -> dict[str, Any]:
    """Return the document."""
    return document(
        title="Sightline",
        about="The server as a whole. Each model has a document of its own, at "
        "`/v2/models/{model}/openapi.json`.",
        servers=("/",),
        paths={**_server_calls(), **_repository_calls()},
        schemas=_schemas(),
    )


def _server_calls() -> dict[str, dict[str, Any]]:
    server = {**server_metadata(), "extensions": list(EXTENSIONS)}
    stats = {"model_stats": [model_statistics(EXAMPLE, "1", ())]}
    page = answer("The page", {"text/html": {"schema": TEXT}})
    ready = json_answer("All models are ready", ref("Ready"), {"live": True, "ready": True})
    waiting = {"live": True, "ready": False, "waiting_for": [EXAMPLE]}
    document = answer("OpenAPI 3.1", {JSON: {"schema": {"type": "object"}}})
    return {
        "/": _get("page", "The page to try models", "/", {200: page}),
        "/docs": _get("docs", "The page that shows these documents", "/docs", {200: page}),
        "/openapi.json": _get("openapi", "This document", "/openapi.json", {200: document}),
        "/v2": _get(
            "server", "Who this is", "/v2", {200: json_answer("It", ref("Server"), server)}
        ),
        "/v2/health/live": _get(
            "live",
            "Whether the server is up",
            "/v2/health/live",
            {200: json_answer("It is", ref("Live"), {"live": True})},
        ),
        "/v2/health/ready": _get(
            "ready",
            "Whether every deployed model can be asked",
            "/v2/health/ready",
            {200: ready, 503: json_answer("Some cannot yet", ref("Ready"), waiting)},
        ),
        "/v2/models/stats": _get(
            "stats",
            "Counters of every model that is ready",
            "/v2/models/stats",
            {200: json_answer("The counters", ref("Stats"), stats)},
            scope="infer",
            codes=LIST_CODES,
        ),
    }


def _repository_calls() -> dict[str, dict[str, Any]]:
    entry = {"name": EXAMPLE, "version": "1", "state": "READY", "reason": ""}
    model = in_path("model", {"type": "string", "pattern": "^[^/]+$"}, "its name")
    nothing: dict[str, Any] = {"description": "It is loaded", "content": {JSON: {}}}
    empty = body(
        "Nothing, or an object without parameters: what is served stands in the serve file",
        {JSON: {"schema": {"type": "object"}, "example": {}}},
        required=False,
    )
    post = "curl -X POST"
    return {
        "/v2/repository/index": {
            "post": operation(
                "index",
                "The models, with their states",
                tag="models",
                scope="infer",
                request=body(
                    'Nothing, or `{"ready": true}` for those that can be asked',
                    {JSON: {"schema": ref("IndexRequest"), "example": {"ready": True}}},
                    required=False,
                ),
                answers={200: json_answer("The models", ref("Index"), [entry])},
                codes={**BODY_CODES, **LIST_CODES},
                curl=f"{post} '{{server}}/v2/repository/index'",
            )
        },
        "/v2/repository/models/{model}/load": {
            "post": operation(
                "load",
                "Whether a model is loaded; nothing is ever loaded by a call",
                tag="models",
                scope="admin",
                parameters=[model],
                request=empty,
                answers={200: nothing},
                codes={
                    **BODY_CODES,
                    404: ("unknown_model",),
                    501: ("declarative",),
                    **LIST_CODES,
                },
                curl=f"{post} -H 'X-API-Key: KEY' '{{server}}/v2/repository/models/{EXAMPLE}/load'",
            )
        },
        "/v2/repository/models/{model}/unload": {
            "post": operation(
                "unload",
                "Always refused: what is served stands in the serve file",
                tag="models",
                scope="admin",
                parameters=[model],
                answers={},
                codes={404: ("unknown_model",), 501: ("declarative",), **LIST_CODES},
                curl=f"{post} -H 'X-API-Key: KEY' "
                f"'{{server}}/v2/repository/models/{EXAMPLE}/unload'",
            )
        },
    }


def _schemas() -> dict[str, Schema]:
    truth = {"type": "boolean"}
    entry = closed(
        {
            "name": TEXT,
            "version": TEXT,
            "state": {"type": "string", "enum": STATES},
            "reason": TEXT,
        }
    )
    names = {"type": "array", "items": TEXT}
    return {
        "Server": closed({"name": TEXT, "version": TEXT, "extensions": names}),
        "Live": closed({"live": {"const": True}}),
        "Ready": closed(
            {"live": {"const": True}, "ready": truth, "waiting_for": names}, {"waiting_for"}
        ),
        "Stats": closed({"model_stats": {"type": "array", "items": statistics_schema()}}),
        "IndexRequest": {"type": "object", "properties": {"ready": truth}},
        "Index": {"type": "array", "items": entry},
    }


def _get(
    name: str,
    summary: str,
    path: str,
    answers: dict[int, dict[str, Any]],
    *,
    scope: str = "",
    codes: Codes | None = None,
) -> dict[str, Any]:
    curl = f"curl '{{server}}{path}'"
    made = operation(
        name, summary, tag="server", answers=answers, scope=scope, codes=codes, curl=curl
    )
    return {"get": made}
