"""The HTTP application of one model: which path is answered by whom. It knows nothing of Serve.

Every call stands below the model's path and, with the same meaning, below `/versions/{version}`.
"""

from __future__ import annotations

from serve_app.api import CALLS
from serve_app.errors import RequestError
from serve_app.model import ServedModel
from serve_app.oip import oip_routes
from serve_app.routing import Api

VERSIONS = "/versions/"


def build_asgi(model: ServedModel) -> Api:
    """Return the application of a model, with the calls that its kind answers."""
    calls = {f"/{name}": {"POST": CALLS[name](model)} for name in sorted(model.kind.calls)}
    version = str(model.manifest.version)

    def without_version(path: str) -> str:
        if not path.startswith(VERSIONS):
            return path
        asked, slash, rest = path.removeprefix(VERSIONS).partition("/")
        if asked != version:
            raise RequestError(
                404,
                "unknown_version",
                f"model {model.manifest.name!r} is served in version {version}, not {asked!r}",
            )
        return slash + rest

    return Api({**calls, **oip_routes(model)}, rewrite=without_version)
