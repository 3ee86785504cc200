"""What a load generator met: answers counted by what they are, and their latencies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.wire import BROKEN

OK, REFUSED = 200, 429


@dataclass(frozen=True)
class Load:
    """What a closed loop met. Latencies are of every answer with wrk, else of those with 200."""

    per_second: float  # answers with 200
    p50_ms: float
    p99_ms: float
    num_ok: int
    num_429: int
    num_other: int  # other statuses, broken connections, no answer

    @property
    def num_failed(self) -> int:
        """Everything but 200."""
        return self.num_429 + self.num_other


@dataclass(frozen=True)
class Rate:
    """What an open loop met. Milliseconds are not-a-number where there was no such answer.

    A request without an answer at the end counts as an admitted one with the time it has waited, so
    that p50 and p99 of a server that does not keep up are lower bounds.
    """

    offered_per_second: float
    ok_per_second: float
    p50_ms: float
    p99_ms: float
    refused_p50_ms: float  # answers with another status than 200
    refused_p99_ms: float
    num_sent: int
    num_ok: int
    num_429: int
    num_other: int
    num_unanswered: int
    num_connections: int
    # How late the generator itself was with requests for which a connection was free: where this is
    # not small against p50, it had too little of the CPU.
    late_p99_ms: float

    @property
    def num_failed(self) -> int:
        """Everything but 200, and what was never answered."""
        return self.num_429 + self.num_other + self.num_unanswered


class Tally:
    """Answers by what they are, with latencies in seconds."""

    def __init__(self) -> None:
        self.ok: list[float] = []
        self.refused: list[float] = []
        self.num_429 = 0
        self.num_broken = 0

    def add(self, status: int, latency: float) -> None:
        """Count an answer."""
        if status == OK:
            self.ok.append(latency)
        elif status == BROKEN:
            self.num_broken += 1
        else:
            self.refused.append(latency)
            self.num_429 += status == REFUSED

    @property
    def num_other(self) -> int:
        """Other statuses and broken connections."""
        return len(self.refused) - self.num_429 + self.num_broken

    @property
    def num_all(self) -> int:
        """Every one."""
        return len(self.ok) + len(self.refused) + self.num_broken


def percentile_ms(seconds: Sequence[float], share: float) -> float:
    """Return a percentile in milliseconds (the nearest rank), not-a-number of nothing."""
    if not seconds:
        return math.nan
    return sorted(seconds)[math.ceil(share * len(seconds)) - 1] * 1e3
