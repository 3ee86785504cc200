"""Counts of requests and answers that a replica keeps for metrics; what its engine did is counted
in `statistics`.

They are kept in this process, since handing one value to Ray costs 5 to 8 microseconds, and are
handed over every few seconds (`metrics`). Times come in nanoseconds. It knows nothing of Ray, HTTP
or models.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass

from serve_app.histograms import NS, SECONDS, Distribution, Histogram

CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
MAX_LABELS = 1000  # labels that are counted one by one
OTHER_LABELS = "(other)"


Calls = tuple[str, str]  # call, protocol


@dataclass(frozen=True)
class Counted:
    """Everything at one moment."""

    requests: dict[Calls, int]
    errors: dict[tuple[str, str, str], int]  # call, protocol, code
    request_seconds: dict[Calls, Distribution]  # of scoring calls
    image_errors: dict[str, int]
    predictions: dict[str, int]
    unknown: int
    confidence: Distribution


class Meters:
    """What many threads add to."""

    def __init__(self, *, has_labels: bool = True) -> None:
        """Without `has_labels` predictions are counted, but not by label."""
        self._lock = threading.Lock()
        self._has_labels = has_labels
        self._requests: dict[Calls, int] = defaultdict(int)
        self._errors: dict[tuple[str, str, str], int] = defaultdict(int)
        self._request_ns: dict[Calls, Histogram] = defaultdict(lambda: Histogram(SECONDS, NS))
        self._image_errors: dict[str, int] = defaultdict(int)
        self._predictions: dict[str, int] = defaultdict(int)
        self._unknown = 0
        self._confidence = Histogram(CONFIDENCES)

    def add_request(self, call: str, protocol: str, code: str, spent_ns: int | None) -> None:
        """Count a request that was answered; `code` is "" without an error, `spent_ns` None where
        the time does not matter.
        """
        with self._lock:
            self._requests[call, protocol] += 1
            if code:
                self._errors[call, protocol, code] += 1
            if spent_ns is not None:
                self._request_ns[call, protocol].add(spent_ns)

    def add_image_error(self, code: str) -> None:
        """Count an image that could not be scored beside others that were."""
        with self._lock:
            self._image_errors[code] += 1

    def add_prediction(self, label: str, confidence: float, *, is_unknown: bool) -> None:
        """Count the label that an image was answered with."""
        with self._lock:
            self._confidence.add(confidence)
            self._unknown += is_unknown
            if self._has_labels:
                known = label in self._predictions or len(self._predictions) < MAX_LABELS
                self._predictions[label if known else OTHER_LABELS] += 1

    def counted(self) -> Counted:
        """Return all of it as it is now."""
        with self._lock:
            return Counted(
                dict(self._requests),
                dict(self._errors),
                {calls: each.frozen() for calls, each in self._request_ns.items()},
                dict(self._image_errors),
                dict(self._predictions),
                self._unknown,
                self._confidence.frozen(),
            )


def batch_sizes(runs: dict[int, int]) -> Distribution:
    """Return the distribution of batch sizes from the number of runs of each size."""
    found = Histogram(BATCHES)
    for size, count in runs.items():
        found.add(size, count)
    return found.frozen()
