"""The bundled load generator: `python -m benchmarks.generator`, one process, one selector.

Two ways to send. A closed loop, which is here, sends the next request of a connection when its
answer is there, so a slow server is asked less often; `open_loop` keeps to a rate.
"""

from __future__ import annotations

import argparse
import json
import math
import selectors
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.open_loop import run_open
from benchmarks.tally import Load, Rate, Tally, percentile_ms
from benchmarks.wire import BROKEN, Address, Connection, close_all

SECONDS_TO_RECONNECT = 0.01


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
    tally = Tally()
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
        close_all(selector)
    return Load(
        per_second=len(tally.ok) / elapsed,
        p50_ms=percentile_ms(tally.ok, 0.5),
        p99_ms=percentile_ms(tally.ok, 0.99),
        num_ok=len(tally.ok),
        num_429=tally.num_429,
        num_other=tally.num_other,
    )


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
