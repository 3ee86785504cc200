"""How many requests a replica takes at once. Beyond it, 429 at once, before the body is read: a
request that would wait for long is better sent elsewhere or later.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.errors import RequestError
from serve_app.statistics import Statistics


class Gate:
    """Lets a bounded number of scoring requests in, and counts what becomes of them."""

    def __init__(
        self, max_requests: int, retry_after_seconds: float, statistics: Statistics
    ) -> None:
        self._max_requests = max_requests
        self._retry_after = str(max(1, math.ceil(retry_after_seconds)))
        self._statistics = statistics
        self.num_inside = 0

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Hold a place for the request that is answered inside. Raises `RequestError` (429)."""
        if self.num_inside >= self._max_requests:
            raise RequestError(
                429,
                "queue_full",
                f"this replica has {self.num_inside} requests to answer already; try again after "
                f"{self._retry_after} s",
                {"Retry-After": self._retry_after},
            )
        self.num_inside += 1
        try:
            with self._statistics.request():
                yield
        finally:
            self.num_inside -= 1
