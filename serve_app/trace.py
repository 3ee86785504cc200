"""What is kept of one request while it is answered: its id, and what the access log will say of it.

`current` holds the trace of the request that is being answered, in its task and in the threads that
work for it (they run in a copy of its context). Each request has a task of its own, so nothing is
ever put back. It knows nothing of HTTP, gRPC or metrics.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from contextvars import ContextVar
from typing import Protocol

HEADER = "X-Request-Id"
KEY = HEADER.lower()  # in ASGI and in gRPC's metadata
LONGEST_ID = 128
SANE = re.compile(rf"[!-~]{{1,{LONGEST_ID}}}")  # printable ASCII without spaces


class Connection(Protocol):
    """Where a request came from, as far as it matters."""

    @property
    def disconnected(self) -> bool:
        """Whether nobody is there any more to read an answer."""
        ...


class Trace:
    """One request, from its first byte to its answer. Times are nanoseconds."""

    __slots__ = (
        "call",
        "code",
        "connection",
        "images",
        "infer_ns",
        "input_ns",
        "key",
        "path",
        "protocol",
        "queue_ns",
        "request_id",
        "revision",
        "started",
    )

    def __init__(self, request_id: str, protocol: str) -> None:
        self.request_id = request_id
        self.protocol = protocol
        self.started = time.perf_counter_ns()
        self.call = "unknown"  # the name of the call in metrics
        self.path: str | None = None  # as its route is written down, never as the client sent it
        self.code = ""  # of the error that it was answered with
        self.key = ""  # the name of the key that it came with, never the key
        self.revision: int | None = None  # of the labels
        self.connection: Connection | None = None  # where nobody else tells that it has ended
        # Summed over the images that were scored.
        self.images = self.queue_ns = self.input_ns = self.infer_ns = 0

    @property
    def is_abandoned(self) -> bool:
        """Whether the client has left, so that nothing more needs to be done for it."""
        return self.connection is not None and self.connection.disconnected


current: ContextVar[Trace | None] = ContextVar("trace of the current request", default=None)


def request_id_of(given: str | None) -> str:
    """Return the id that a client sent, if it is sane, else a new one."""
    return given if given is not None and SANE.fullmatch(given) else str(uuid.uuid4())


class RequestIdFilter(logging.Filter):
    """Gives each record the id of the request that it was written for, under the name that Serve's
    formats know: `request_id`.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the id; no record is held back."""
        trace = current.get()
        if trace is not None:
            record.request_id = trace.request_id
        return True


def mark_records(logger: logging.Logger) -> None:
    """Let a logger's records carry request ids.

    Serve adds its own id only with its access log or with JSON, and it is what the client sent,
    sane or not; so the handlers that are there get the filter too, behind Serve's.
    """
    for target in (logger, *logger.handlers):
        if not any(isinstance(each, RequestIdFilter) for each in target.filters):
            target.addFilter(RequestIdFilter())
