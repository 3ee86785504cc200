"""The HTTP application of one model: which path is answered by whom, and who may call. It knows
nothing of Serve.

Every call stands below the model's path and, with the same meaning, below `/versions/{version}`.
"""

from __future__ import annotations

import re

from serve_app.admission import Gate
from serve_app.api import CALLS
from serve_app.documents import document_routes
from serve_app.errors import RequestError
from serve_app.keys import INFER, Keys
from serve_app.labels_api import label_routes
from serve_app.model import ServedModel
from serve_app.oip.routes import oip_routes
from serve_app.openapi.docs import model_docs
from serve_app.peers import Alone, Peers
from serve_app.replies import Reply
from serve_app.request import Request
from serve_app.routing import Api, Handler, Routes
from serve_app.shown import shown

VERSIONS = "/versions/"
OPEN = ("ready", "live", "openapi.json")  # last parts of paths that need no key
INFER_CALL = "infer"
# A view is a server of its own, with the model below it.
IN_VIEW = re.compile(r"^/views/[^/]+(/v2/models/[^/]+(/versions/[^/]+)?|/v2/health)?")
NAMES = {"": "metadata", "/v2": "server"}


def build_asgi(model: ServedModel, keys: Keys | None = None, peers: Peers | None = None) -> Api:
    """Return the application of a model, with the calls that its kind answers.

    Without `keys` scoring is open and admin calls are closed; without `peers` there are no others.
    """
    keys, peers = keys or Keys(), peers or Alone(model)
    calls = {f"/{name}": {"POST": CALLS[name](model)} for name in sorted(model.kind.calls)}
    scoring = {INFER_CALL, *model.kind.calls}
    routes: Routes = {
        **calls,
        **oip_routes(model, peers),
        **label_routes(model, keys, peers),
        **model_docs(model),
        **document_routes(model.predictor.bundle),
    }
    version = str(model.manifest.version)

    def without_version(path: str) -> str:
        if not path.startswith(VERSIONS):
            return path
        asked, slash, rest = path.removeprefix(VERSIONS).partition("/")
        if asked != version:
            raise RequestError(
                404,
                "unknown_version",
                f"model {model.manifest.name!r} answers here in version {version}, "
                f"not {shown(asked)}",
            )
        return slash + rest

    return Api(
        {
            path: {
                method: _guarded(handler, path, keys, model.gate if last in scoring else None)
                for method, handler in methods.items()
            }
            for path, methods in routes.items()
            for last in (path.rpartition("/")[2],)
        },
        rewrite=without_version,
        watch=model.watch,
        name_call=call_name,
        retry_after=model.gate.retry_after,
        num_turned_away=model.gate.busy_requests,
        max_scoring_bytes=model.limits.max_body_bytes,
    )


def call_name(path: str) -> str:
    """Return the name that a model's route has in metrics: the same in all views."""
    below = IN_VIEW.sub("", path).removesuffix("/*")
    return NAMES.get(below) or below.lstrip("/").replace("/", "_")


def guarded(routes: Routes, keys: Keys) -> Routes:
    """Return the routes, of which all but the open ones need a key where keys are configured."""
    return {
        path: {method: _guarded(handler, path, keys) for method, handler in methods.items()}
        for path, methods in routes.items()
    }


def _guarded(handler: Handler, path: str, keys: Keys, gate: Gate | None = None) -> Handler:
    """Let in who may call, and of scoring calls no more than can be answered."""
    is_open = path.rpartition("/")[2] in OPEN

    async def call(request: Request) -> Reply:
        if not is_open:
            keys.require(request.headers, INFER)
        if gate is None:
            return await handler(request)
        return await gate.answered(handler, request)

    return call
