"""An open loop: requests are sent by a schedule, whatever the server does.

Latency counts from the scheduled time: a request that had to wait for a connection has waited, too.
Arrivals are a Poisson process, as of many clients that know nothing of each other (and as in
MLPerf's server scenario), the same one in every run; connections are opened as they are needed, up
to a limit.
"""

from __future__ import annotations

import contextlib
import random
import select
import selectors
import time
from collections import deque
from collections.abc import Sequence

from benchmarks.tally import Rate, Tally, percentile_ms
from benchmarks.wire import BROKEN, Address, Connection, close_all

SECONDS_OF_GRACE = 3.0  # for the answers to what the schedule sent last


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
        self._tally = Tally()
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
        close_all(self._selector)
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
