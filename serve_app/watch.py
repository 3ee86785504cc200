"""What is seen of requests: gives each its id, and counts and logs it once it is answered.

Both wires, HTTP and gRPC, begin and end a request here. `Watch()` alone sees nothing and only gives
ids. It knows nothing of Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from serve_app.access_log import AccessLog
from serve_app.meters import Meters
from serve_app.trace import Trace, current, request_id_of

NS_PER_MS = 1_000_000
SCORING = frozenset({"classify", "embed", "infer"})

Details = Callable[[], Mapping[str, object]]  # what only the access log wants to know


class Watch:
    """Sees the requests of one application."""

    def __init__(self, meters: Meters | None = None) -> None:
        """Nothing is counted without meters, and nothing logged before there is a log."""
        self.meters = meters
        self.access_log: AccessLog | None = None
        # Whether a server around the application sends the id back by itself, as Serve does.
        self.is_echoed = False

    def begin(self, given: str | None, protocol: str) -> Trace:
        """Begin a request, with the id that came with it if that is sane."""
        trace = Trace(request_id_of(given), protocol)
        current.set(trace)
        return trace

    def end(self, trace: Trace, status: int, details: Details) -> None:
        """Count and log a request that was answered with an HTTP status, or its like."""
        spent = time.perf_counter_ns() - trace.started
        code = trace.code or (f"http_{status}" if status >= 400 else "")
        if self.meters is not None:
            is_timed = trace.call in SCORING
            self.meters.add_request(trace.call, trace.protocol, code, spent if is_timed else None)
        log = self.access_log
        if log is not None and log.wants(status):
            log.add({**_entry(trace, status, code, spent), **details()})

    def close(self) -> None:
        """Write what is left of the log."""
        if self.access_log is not None:
            self.access_log.close()


def _entry(trace: Trace, status: int, code: str, spent: int) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "request_id": trace.request_id,
        "protocol": trace.protocol,
        "call": trace.call,
        "path": trace.path,
        "status": status,
        "code": code or None,
        "images": trace.images,
        "queue_ms": trace.queue_ns / NS_PER_MS,
        "decode_ms": trace.input_ns / NS_PER_MS,
        "infer_ms": trace.infer_ns / NS_PER_MS,
        "total_ms": spent / NS_PER_MS,
        "key": trace.key or None,
    }
    if trace.revision is not None:
        entry["label_revision"] = trace.revision
    return entry
