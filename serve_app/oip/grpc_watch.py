"""One call over gRPC while it is answered: its request id, and the status that it ends with.

An error becomes a gRPC code and our sentence; its word is in the trailing metadata
`sightline-code`, the request's id in `x-request-id`. Errors are set on the context and not raised:
Serve would write a traceback to the log for each mistake of a client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import grpc  # type: ignore[import-untyped]

from serve_app.errors import told
from serve_app.oip.grpc_service import SERVICE
from serve_app.trace import KEY
from serve_app.watch import Watch

CODE_KEY = "sightline-code"
SERVE_KEY = "request_id"  # under which Serve takes an id, or sends back one of its own
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    # Not RESOURCE_EXHAUSTED, which asks to be tried again: too large stays too large.
    413: grpc.StatusCode.INVALID_ARGUMENT,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
}
# The names that the calls have in metrics: those of HTTP, where it has the call.
CALL_NAMES: Mapping[str, str] = {
    "ServerLive": "live",
    "ServerReady": "ready",
    "ModelReady": "ready",
    "ServerMetadata": "server",
    "ModelMetadata": "metadata",
    "ModelConfig": "config",
    "ModelStatistics": "stats",
    "ModelInfer": "infer",
    "ModelStreamInfer": "infer",
    "RepositoryIndex": "index",
    "RepositoryModelLoad": "load",
    "RepositoryModelUnload": "unload",
}


class Watched:
    """A call that is seen from its beginning to the end of the `with`."""

    def __init__(self, watch: Watch, name: str, grpc_context: Any) -> None:
        self._watch, self._name, self._context = watch, name, grpc_context
        self._status = 499  # where nothing comes to be said
        self._request: Any = None
        self._response: Any = None
        self._trace = watch.begin(_given(grpc_context), "grpc")
        self._trace.call = CALL_NAMES.get(name, "not_offered")
        self._trace.path = f"/{SERVICE}/{name}"
        self._id = (KEY, self._trace.request_id)
        grpc_context.set_trailing_metadata([self._id])

    def answered(self, request: Any, response: Any) -> Any:
        """Note and return the answer."""
        self._status, self._request, self._response = 200, request, response
        return response

    def refused(self, error: Exception) -> None:
        """End the call with the code, the sentence and the word of an error."""
        form = self.failed(error)
        self._context.set_code(CODES.get(self._status, grpc.StatusCode.INTERNAL))
        self._context.set_details(str(form["error"]))
        self._context.set_trailing_metadata([(CODE_KEY, str(form["code"])), self._id])

    def failed(self, error: Exception) -> Mapping[str, object]:
        """Note an error that an answer tells of; return what clients see of it."""
        self._status, form = told(error)
        return form

    def __enter__(self) -> Watched:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, asyncio.CancelledError):
            self._trace.code = "client_gone"
        self._watch.end(self._trace, self._status, self._details)

    def _details(self) -> dict[str, object]:
        return {
            "method": self._name,
            "bytes_in": _size(self._request),
            "bytes_out": _size(self._response),
        }


def _given(grpc_context: Any) -> str | None:
    """Return the id that the client sent, else the one that Serve has made."""
    sent = dict(grpc_context.invocation_metadata() or ())
    found = sent.get(KEY) or sent.get(SERVE_KEY)
    return found or dict(grpc_context.trailing_metadata() or ()).get(SERVE_KEY)


def _size(message: Any) -> int | None:
    return message.ByteSize() if hasattr(message, "ByteSize") else None
