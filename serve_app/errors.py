"""From an error to what a client sees: a status, a code and a sentence.

Every refusal has the body `{"error": "...", "code": "..."}`, the form that Open Inference Protocol
clients read. What is not a `SightlineError` is a defect of ours: it is logged with its traceback,
and the client learns nothing of it but that it happened.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from models.errors import (
    EngineError,
    ImageDecodeError,
    ImageError,
    ImageTooLargeError,
    ImageTypeError,
    SightlineError,
)
from serve_app.logs import OURS
from serve_app.replies import Reply, json_reply
from serve_app.trace import current

logger = logging.getLogger(OURS)


class RequestError(SightlineError):
    """A request that cannot be answered, with the status to say so."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, object] | None = None,
    ) -> None:
        """`details` stand in the body beside `error` and `code`."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})
        self.details = dict(details or {})


# The first row that fits counts, so a subclass stands before its parent.
STATUS: tuple[tuple[type[SightlineError], int], ...] = (
    (ImageTooLargeError, 413),
    (ImageTypeError, 415),
    (ImageDecodeError, 422),
    (ImageError, 422),
)


def bad_request(message: str, code: str = "bad_request") -> RequestError:
    """Return the error for a request that is malformed."""
    return RequestError(400, code, message)


def explain(error: SightlineError) -> dict[str, object]:
    """Return the error form, as it stands in a body or beside other images' answers."""
    details = error.details if isinstance(error, RequestError) else {}
    return {"error": str(error), "code": error.code, **details}


def status_of(error: Exception) -> int:
    """Return the HTTP status of an error; 500 for what is no fault of the client's."""
    if isinstance(error, RequestError):
        return error.status
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def told(error: Exception) -> tuple[int, dict[str, object]]:
    """Return the status of an error and what a client is told of it; logs those that are the
    server's fault, and notes the code for whoever watches the request.
    """
    status, form = status_of(error), _form(error)
    trace = current.get()
    if trace is not None:
        trace.code = str(form["code"])
    return status, form


def _form(error: Exception) -> dict[str, object]:
    if isinstance(error, RequestError) or (
        isinstance(error, SightlineError) and status_of(error) < 500
    ):
        return explain(error)
    logger.error("a request failed", exc_info=error)
    code = error.code if isinstance(error, EngineError) else SightlineError.code
    return {"error": "the server failed; the reason is in its log", "code": code}


def error_reply(error: Exception) -> Reply:
    """Return the answer for an error."""
    status, form = told(error)
    return json_reply(form, status, error.headers if isinstance(error, RequestError) else None)
