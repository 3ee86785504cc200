"""The bundled load generator against a real server."""

from __future__ import annotations

import itertools
import math
import socket
import statistics
import time
from urllib.parse import urlsplit

import pytest

from benchmarks.generator import run_closed
from benchmarks.open_loop import arrivals, run_open
from benchmarks.tally import Rate, percentile_ms
from benchmarks.wire import Address, Request
from tests.benchmarks.tiny_server import TinyServer, tiny_server

REQUEST = Request("/classify?top_k=1", b"x" * 50_000, (("Content-Type", "image/jpeg"),))


def address(url: str) -> Address:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def open_loop(
    server: TinyServer,
    *,
    per_second: float,
    seconds: float,
    connections: int,
    seconds_of_grace: float = 3.0,
) -> Rate:
    requests = [REQUEST.encode("here")]
    return run_open(
        address(server.url),
        requests,
        per_second,
        seconds,
        connections,
        seconds_of_grace=seconds_of_grace,
    )


def test_a_request_arrives_as_it_was_written() -> None:
    with tiny_server(lambda number: (200, 0.0)) as server:
        run_closed(address(server.url), [REQUEST.encode("here")], 1, 0.1)
        assert set(server.paths) == {"/classify?top_k=1"}
        assert server.bodies[0] == REQUEST.body
        assert server.headers[0]["Content-Type"] == "image/jpeg"
        assert server.headers[0]["Host"] == "here"


def test_requests_take_turns() -> None:
    requests = [Request(f"/{name}", b"").encode("here") for name in "abc"]
    with tiny_server(lambda number: (200, 0.0)) as server:
        run_closed(address(server.url), requests, 1, 0.1)
        assert server.paths[:5] == ["/a", "/b", "/c", "/a", "/b"]


def test_a_closed_loop_counts_statuses_apart() -> None:
    statuses = (200, 429, 500, 200)
    with tiny_server(lambda number: (statuses[number % 4], 0.005)) as server:
        started = time.perf_counter()
        load = run_closed(address(server.url), [REQUEST.encode("here")], 1, 0.5)
        elapsed = time.perf_counter() - started
    assert load.num_ok > 10
    assert abs(load.num_ok - 2 * load.num_429) <= 2
    assert abs(load.num_429 - load.num_other) <= 1
    assert load.num_failed == load.num_429 + load.num_other
    assert 0.5 <= load.num_ok / load.per_second <= elapsed  # seconds
    assert load.p50_ms >= 5


def test_a_closed_loop_counts_and_survives_connections_that_break() -> None:
    with tiny_server(lambda number: (200 if number % 2 else 0, 0.0)) as server:
        load = run_closed(address(server.url), [REQUEST.encode("here")], 2, 0.3)
    assert load.num_ok > 5
    assert load.num_other > 5


def test_an_answer_in_chunks_is_one_answer() -> None:
    with tiny_server(lambda number: (200, 0.0), is_chunked=True) as server:
        load = run_closed(address(server.url), [REQUEST.encode("here")], 1, 0.2)
        assert load.num_ok > 5
        assert abs(load.num_ok - len(server.bodies)) <= 1
    assert load.num_failed == 0


def test_a_server_that_is_not_there_is_all_failures() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        load = run_closed(unused.getsockname(), [REQUEST.encode("here")], 2, 0.2)
    assert load.num_ok == 0
    assert 0 < load.num_other < 200  # and it does not try as fast as it can
    assert math.isnan(load.p50_ms)


def test_an_open_loop_keeps_its_rate_beside_slow_answers() -> None:
    with tiny_server(lambda number: (200, 0.1)) as server:
        rate = open_loop(server, per_second=100, seconds=0.5, connections=64)
    assert rate.num_sent == rate.num_ok == 50
    assert 8 <= rate.num_connections <= 40  # ten are enough in theory
    assert 100 <= rate.p50_ms < 200
    assert rate.num_failed == 0


def test_latency_counts_from_the_schedule_and_not_from_the_sending() -> None:
    """One connection answers 20 a second and is asked 24 times in 0.6 s: the last waits as long."""
    with tiny_server(lambda number: (200, 0.05)) as server:
        rate = open_loop(server, per_second=40, seconds=0.6, connections=1)
    assert rate.num_connections == 1
    assert rate.num_ok == 24
    assert rate.p50_ms > 200
    assert rate.p99_ms > 500


def test_a_server_is_not_called_faster_for_what_it_answers_afterwards() -> None:
    with tiny_server(lambda number: (200, 0.05)) as server:
        rate = open_loop(server, per_second=60, seconds=0.5, connections=1)
    assert rate.num_ok > 20  # within the grace period
    assert rate.ok_per_second <= 20


def test_what_is_never_answered_counts_with_the_time_it_has_waited() -> None:
    with tiny_server(lambda number: (200, 0.0 if number < 10 else 60.0)) as server:
        rate = open_loop(server, per_second=40, seconds=0.5, connections=4, seconds_of_grace=0.5)
    assert rate.num_ok == 10
    assert rate.num_unanswered == 10
    assert rate.p99_ms > 600  # the first of them was due after 0.31 s of the whole second


def test_refused_requests_are_counted_apart_from_admitted_ones() -> None:
    with tiny_server(lambda number: (200, 0.06) if number % 2 else (429, 0.0)) as server:
        started = time.perf_counter()
        rate = open_loop(server, per_second=60, seconds=1.0, connections=32)
        elapsed = time.perf_counter() - started
    assert rate.num_ok == rate.num_429 == 30
    assert rate.num_other == rate.num_unanswered == 0
    assert rate.p50_ms >= 60
    assert rate.refused_p50_ms < 50
    assert 30 / elapsed <= rate.ok_per_second <= 30


def test_an_open_loop_outlives_connections_that_break() -> None:
    with tiny_server(lambda number: (0 if number % 3 == 0 else 200, 0.0)) as server:
        rate = open_loop(server, per_second=90, seconds=0.5, connections=8)
    assert rate.num_ok == 30
    assert rate.num_other == 15


def test_a_percentile_is_the_nearest_rank() -> None:
    assert percentile_ms([0.003, 0.001, 0.002], 0.5) == 2
    assert percentile_ms([0.001], 0.99) == 1
    assert math.isnan(percentile_ms([], 0.5))


def test_a_counted_loop_ends_with_the_last_answer() -> None:
    with tiny_server(lambda number: (200, 0.05)) as server:
        requests = [REQUEST.encode("here")]
        started = time.perf_counter()
        load = run_closed(address(server.url), requests, 2, num_requests=7)
        elapsed = time.perf_counter() - started
    assert len(server.bodies) == load.num_ok == 7
    assert 7 / elapsed <= load.per_second <= 7 / 0.2  # four turns of two


def test_arrivals_are_those_of_many_clients_and_the_same_every_time() -> None:
    due = arrivals(per_second=500, seconds=4)
    assert due == arrivals(per_second=500, seconds=4) == sorted(due)
    assert len(due) == 2000
    gaps = [b - a for a, b in itertools.pairwise(due)]
    # Of a Poisson process the gaps spread as much as their mean; of a metronome, not at all.
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.15)


def test_the_warm_up_of_an_open_loop_is_sent_but_not_counted() -> None:
    with tiny_server(lambda number: (200, 0.0) if number >= 20 else (429, 0.0)) as server:
        requests = [REQUEST.encode("here")]
        started = time.perf_counter()
        rate = run_open(address(server.url), requests, 40, 0.5, 8, warm_up_seconds=0.5)
        elapsed = time.perf_counter() - started
    assert len(server.bodies) == 40
    assert 10 < rate.num_sent == rate.num_ok + rate.num_429 < 30
    assert rate.num_429 < 10
    # Neither the warm-up's answers nor its seconds are in it.
    counted = max(0.5, elapsed - 0.5)
    assert rate.num_ok / counted <= rate.ok_per_second <= rate.num_ok / 0.5
