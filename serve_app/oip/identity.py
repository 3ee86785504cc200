"""What this server says of itself in the Open Inference Protocol, whichever application answers."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from serve_app.errors import RequestError

NAME = "sightline"
EXTENSIONS = ("binary_tensor_data", "classification", "model_repository", "statistics")


def server_metadata() -> dict[str, Any]:
    """Return name, version and extensions."""
    return {"name": NAME, "version": _version(), "extensions": EXTENSIONS}


def declared(what: str) -> RequestError:
    """Return the error for a call that would change what is served."""
    return RequestError(
        501,
        "declarative",
        f"cannot {what}: what is served stands in the serve file; change it and run `serve deploy`",
    )


def _version() -> str:
    try:
        return version(NAME)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
