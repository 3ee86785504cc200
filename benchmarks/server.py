"""A server under measurement: asked over HTTP, weighed, and stopped where it is (SIGSTOP) while
another is measured.

A paused server keeps its memory and takes no CPU, so several can stay loaded and be measured in
turns. What it is and how it starts is told by who inherits from it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx
import psutil

from benchmarks.load import Load, Rate, run_count, run_rate, run_requests
from benchmarks.wire import Request
from cluster.environment import MARK
from cluster.processes import marked_processes

NUM_PROBES = 5
SECONDS_TO_DRAIN = 60.0
SECONDS_TO_AWAKE = 5.0


class Server:
    """Something that answers at `url`, with all its processes carrying `mark`."""

    def __init__(self, name: str, requests: Sequence[Request], mark: str = "") -> None:
        self.name = name
        self.url = ""
        self.requests = list(requests)
        self.mark = mark or f"server-{secrets.token_hex(8)}"
        self.start_up_seconds = 0.0  # from the start of its first process to its first answer
        self.warm_per_second = 0.0  # requests answered while it was warmed up
        self.seconds_between = 0.0  # two of its processes that are stopped or woken
        self._environment = {k: v for k, v in os.environ.items() if k != MARK}
        self._idle_seconds = 0.0  # what one request takes when there is no other

    @property
    def processes(self) -> list[psutil.Process]:
        """Every process that it started."""
        return marked_processes(self.mark)

    def learn_idle(self) -> None:
        """See how long one request takes alone, which is how `load` knows that work is done."""
        self._idle_seconds = min(self.probe() for _ in range(NUM_PROBES))

    def load(
        self, connections: int, seconds: float, requests: Sequence[Request] | None = None
    ) -> Load:
        """Run a closed loop over its images (or what is given), once what was asked is done."""
        self._drain()
        return run_requests(
            self.url,
            requests or self.requests,
            connections=connections,
            seconds=seconds,
            environment=self._environment,
        )

    def count(self, connections: int, num_requests: int, requests: Sequence[Request]) -> Load:
        """Run a closed loop of so many requests to the last answer, once what was asked is done.

        For requests so large that one under way at the end of a fixed time would matter.
        """
        self._drain()
        return run_count(
            self.url,
            requests,
            connections=connections,
            num_requests=num_requests,
            environment=self._environment,
        )

    def rate(self, per_second: float, seconds: float, warm_up_seconds: float = 0.0) -> Rate:
        """Run an open loop over its images, once what was asked before is done."""
        self._drain()
        return run_rate(
            self.url,
            self.requests,
            per_second=per_second,
            seconds=seconds,
            environment=self._environment,
            warm_up_seconds=warm_up_seconds,
        )

    def memory_mib(self) -> float:
        """Return the proportional memory of all its processes: shared pages count once."""
        total = 0
        for process in self.processes:
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total / (1 << 20)

    def pause(self) -> None:
        """Stop all its processes where they are (SIGSTOP)."""
        self._signal(signal.SIGSTOP, sorted(self.processes, key=lambda each: each.pid))

    def resume(self) -> None:
        """Let them go on. Children first: a parent that finds its child silent may restart it."""
        self._signal(signal.SIGCONT, sorted(self.processes, key=lambda each: -each.pid))

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run meanwhile."""
        self.resume()
        try:
            yield
        finally:
            self.pause()

    def probe(self) -> float:
        """Return the seconds that one request takes now. Connections that break are tried again for
        a while: some servers close what waited while they were stopped.
        """
        deadline = time.perf_counter() + SECONDS_TO_AWAKE
        while True:
            started = time.perf_counter()
            try:
                with httpx.Client(base_url=self.url, timeout=SECONDS_TO_DRAIN) as client:
                    ask(client, self.requests[0])
                return time.perf_counter() - started
            except httpx.TransportError:
                if time.perf_counter() > deadline:
                    raise
            time.sleep(0.1)

    def _drain(self) -> None:
        """Wait until a request takes what it takes alone, twice in a row.

        A load generator leaves with requests under way, which a server works off regardless; the
        next run would wait behind them. Measured: a p99 of 437 ms at half the load, not 43 ms.
        """
        deadline = time.perf_counter() + SECONDS_TO_DRAIN
        num_quick = 0
        while num_quick < 2:
            num_quick = num_quick + 1 if self.probe() < 2 * self._idle_seconds + 0.01 else 0
            if time.perf_counter() > deadline:
                raise TimeoutError(
                    f"{self.name} still worked off requests after {SECONDS_TO_DRAIN:.0f} s"
                )

    def _signal(self, number: int, processes: Sequence[psutil.Process]) -> None:
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
                time.sleep(self.seconds_between)


def ask(client: httpx.Client, request: Request) -> httpx.Response:
    """Send one prepared request."""
    return client.request(
        request.method, request.path, content=request.body, headers=dict(request.headers)
    )
