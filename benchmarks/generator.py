"""The bundled load generator: `python -m benchmarks.generator`, one process, one selector.

Two ways to send. A closed loop sends the next request of a connection when its answer is there, so
a slow server is asked less often. An open loop sends by a schedule, whatever the server does, and
counts latency from the scheduled time: a request that had to wait for a connection has waited, too.
Arrivals are a Poisson process, as of many clients that know nothing of each other (and as in
MLPerf's server scenario), the same one in every run; connections are opened as they are needed, up
to a limit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import select
import selectors
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.wire import BROKEN, Address, Connection

OK, REFUSED = 200, 429
SECONDS_OF_GRACE = 3.0  # for the answers to what the schedule sent last
SECONDS_TO_RECONNECT = 0.01


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


class _Tally:
    """Answers by what they are, with latencies in seconds."""

    def __init__(self) -> None:
        self.ok: list[float] = []
        self.refused: list[float] = []
        self.num_429 = 0
        self.num_broken = 0

    def add(self, status: int, latency: float) -> None:
        if status == OK:
            self.ok.append(latency)
        elif status == BROKEN:
            self.num_broken += 1
        else:
            self.refused.append(latency)
            self.num_429 += status == REFUSED

    @property
    def num_other(self) -> int:
        return len(self.refused) - self.num_429 + self.num_broken

    @property
    def num_all(self) -> int:
        return len(self.ok) + len(self.refused) + self.num_broken


def run_closed(
    address: Address,
    requests: Sequence[bytes],
    connections: int,
    seconds: float = math.inf,
    num_requests: int | None = None,
) -> Load:
    """Run a closed loop in this process: for some seconds, or to the last answer of so many
    requests.
    """
    tally = _Tally()
    most = math.inf if num_requests is None else num_requests
    position = 0
    with selectors.DefaultSelector() as selector:
        started = time.perf_counter()
        end = started + seconds

        def send(connection: Connection | None) -> None:
            nonlocal position
            if position >= most:
                if connection is not None:
                    connection.close()
                return
            try:
                connection = connection or Connection(address, selector)
                connection.send(requests[position % len(requests)], time.perf_counter())
                position += 1
            except OSError:
                tally.add(BROKEN, 0.0)
                waiting.append(time.perf_counter() + SECONDS_TO_RECONNECT)
                if connection is not None:
                    connection.close()

        waiting: deque[float] = deque([started] * connections)  # when to connect
        while (now := time.perf_counter()) < end and tally.num_all < most:
            while waiting and waiting[0] <= now:
                waiting.popleft()
                send(None)
            for key, events in selector.select(min(end - now, SECONDS_TO_RECONNECT)):
                connection: Connection = key.data
                status = connection.progress(events)
                if status is None:
                    continue
                tally.add(status, time.perf_counter() - connection.due)
                if connection.is_reusable:
                    send(connection)
                else:
                    connection.close()
                    send(None)
        elapsed = time.perf_counter() - started
        _close_all(selector)
    return Load(
        per_second=len(tally.ok) / elapsed,
        p50_ms=percentile_ms(tally.ok, 0.5),
        p99_ms=percentile_ms(tally.ok, 0.99),
        num_ok=len(tally.ok),
        num_429=tally.num_429,
        num_other=tally.num_other,
    )


def run_open(
    address: Address,
    requests: Sequence[bytes],
    per_second: float,
    seconds: float,
    max_connections: int,
    warm_up_seconds: float = 0.0,
    seconds_of_grace: float = SECONDS_OF_GRACE,
) -> Rate:
    """Run an open loop in this process. What is due in the warm-up, before those seconds, is sent
    but not counted. It ends when all is answered, or after the grace period.
    """
    loop = _OpenLoop(address, requests, max_connections)
    try:
        return loop.run(per_second, seconds, warm_up_seconds, seconds_of_grace)
    finally:
        loop.close()


class _OpenLoop:
    """Connections that are idle or busy, and requests that wait for one."""

    def __init__(self, address: Address, requests: Sequence[bytes], max_connections: int) -> None:
        self._address = address
        self._requests = requests
        self._max_connections = max_connections
        self._selector = selectors.DefaultSelector()
        self._idle: list[Connection] = []  # the latest used first, so that few stay in use
        self._busy: set[Connection] = set()
        self._waiting: deque[float] = deque()  # due times
        self._tally = _Tally()
        self._late: list[float] = []
        self._num_sent = self._num_not_counted = self._most_connections = 0
        self._counts_from = 0.0

    def run(
        self, per_second: float, seconds: float, warm_up_seconds: float, seconds_of_grace: float
    ) -> Rate:
        started = time.perf_counter()
        self._counts_from = started + warm_up_seconds
        due = deque(started + each for each in arrivals(per_second, warm_up_seconds + seconds))
        end = self._counts_from + seconds + seconds_of_grace
        while (now := time.perf_counter()) < end:
            while due and due[0] <= now:
                self._offer(due.popleft(), now)
            if not due and not self._busy and not self._waiting:
                break
            self._receive(max(0.0, (due[0] if due else end) - time.perf_counter()))
        now = time.perf_counter()
        left = [*(each.due for each in self._busy), *self._waiting]
        unanswered = [now - due for due in left if due >= self._counts_from]
        admitted = self._tally.ok + unanswered
        return Rate(
            offered_per_second=per_second,
            # Answers in the grace period count, so its seconds do as well.
            ok_per_second=len(self._tally.ok) / max(seconds, now - self._counts_from),
            p50_ms=percentile_ms(admitted, 0.5),
            p99_ms=percentile_ms(admitted, 0.99),
            refused_p50_ms=percentile_ms(self._tally.refused, 0.5),
            refused_p99_ms=percentile_ms(self._tally.refused, 0.99),
            num_sent=self._num_sent - self._num_not_counted,
            num_ok=len(self._tally.ok),
            num_429=self._tally.num_429,
            num_other=self._tally.num_other,
            num_unanswered=len(unanswered),
            num_connections=self._most_connections,
            late_p99_ms=percentile_ms(self._late, 0.99),
        )

    def close(self) -> None:
        _close_all(self._selector)
        self._selector.close()

    def _offer(self, due: float, now: float) -> None:
        """Send what is due now, or let it wait for a connection."""
        if self._waiting or not self._send(due):
            self._waiting.append(due)
        elif due >= self._counts_from:
            self._late.append(now - due)

    def _send(self, due: float) -> bool:
        """Send on a free or a new connection; False where all are busy. What cannot be sent at all
        is counted as broken.
        """
        while self._idle or len(self._busy) < self._max_connections:
            connection = self._idle.pop() if self._idle else None
            is_new = connection is None
            try:
                connection = connection or Connection(self._address, self._selector)
                connection.send(self._requests[self._num_sent % len(self._requests)], due)
            except OSError:
                if connection is not None:
                    connection.close()
                if is_new:
                    self._note_sent(due)
                    if due >= self._counts_from:
                        self._tally.add(BROKEN, 0.0)
                    return True
                continue  # an idle connection that the server has closed meanwhile
            self._note_sent(due)
            self._busy.add(connection)
            self._most_connections = max(self._most_connections, len(self._busy) + len(self._idle))
            return True
        return False

    def _note_sent(self, due: float) -> None:
        self._num_sent += 1
        self._num_not_counted += due < self._counts_from

    def _receive(self, seconds: float) -> None:
        # The selector waits in whole milliseconds; its own descriptor can be waited on for less.
        select.select([self._selector], [], [], seconds)
        for key, events in self._selector.select(0):
            connection: Connection = key.data
            if connection not in self._busy:  # closed by the server while idle
                with contextlib.suppress(ValueError):
                    self._idle.remove(connection)
                connection.close()
                continue
            status = connection.progress(events)
            if status is None:
                continue
            if connection.due >= self._counts_from:
                self._tally.add(status, time.perf_counter() - connection.due)
            self._busy.remove(connection)
            if connection.is_reusable:
                self._idle.append(connection)
            else:
                connection.close()
            if self._waiting and self._send(self._waiting[0]):
                self._waiting.popleft()


def arrivals(per_second: float, seconds: float) -> list[float]:
    """Return when requests are due, in seconds from the start: a Poisson process of exactly so many
    arrivals as the rate has, which is as many uniform points in time, sorted.
    """
    chance = random.Random(0)
    num_due = max(1, round(per_second * seconds))
    return sorted(chance.uniform(0, seconds) for _ in range(num_due))


def percentile_ms(seconds: Sequence[float], share: float) -> float:
    """Return a percentile in milliseconds (the nearest rank), not-a-number of nothing."""
    if not seconds:
        return math.nan
    return sorted(seconds)[math.ceil(share * len(seconds)) - 1] * 1e3


def _close_all(selector: selectors.BaseSelector) -> None:
    for key in list(selector.get_map().values()):
        key.data.close()


def main() -> int:
    """Be a load generator and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--requests", type=Path, required=True, help="folder, a request per file")
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--count", type=int, help="a closed loop of so many requests")
    parser.add_argument("--per-second", type=float, help="an open loop at this rate")
    parser.add_argument("--warm-up-seconds", type=float, default=0.0, help="of an open loop")
    options = parser.parse_args()
    requests = [file.read_bytes() for file in sorted(options.requests.iterdir())]
    address = (options.host, options.port)
    count, seconds = options.connections, options.seconds
    result: Load | Rate
    if options.per_second is None:
        result = run_closed(address, requests, count, seconds, options.count)
    else:
        warm_up = options.warm_up_seconds
        result = run_open(address, requests, options.per_second, seconds, count, warm_up)
    print(json.dumps(asdict(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
