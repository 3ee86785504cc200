"""Replicas that die under load: killed, and out of memory."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest

from tests.faults.conftest import Figures
from tests.faults.grpc_load import grpc_load
from tests.faults.load import CLIENTS, load
from tests.faults.memory import memory_limit
from tests.faults.report import row
from tests.faults.site import NAME, Site, kill, wait_until
from tests.serve_app.grpc_ready import wait_until_routed

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(240)]

SECONDS_TO_HOLD = 0.3  # a replica that is stopped, and given requests meanwhile
SECONDS_TO_NOTICE = 40.0  # of a replica that hangs; Serve looks three times
LIMIT_BYTES = 48 << 20
# Decoded it takes 3 bytes a pixel, which is more than the limit. A PNG, since a JPEG would be
# shrunk while it is decoded.
SIDE = 6000


def kill_one(site: Site, *, replicas: int) -> tuple[float, float]:
    """Kill a replica; return when, and when as many as before ran again (monotonic).

    It is stopped before, so that it has requests: each takes it a few milliseconds, and most kills
    would meet none.
    """
    pid = site.replicas()[0]["pid"]
    os.kill(pid, signal.SIGSTOP)
    time.sleep(SECONDS_TO_HOLD)
    killed = kill(pid)
    return killed, site.wait_until_whole(replicas, without=frozenset([pid]))


def test_a_replica_that_is_killed_loses_no_request(
    site: Site, store: Path, photo: bytes, figures: Figures
) -> None:
    site.serve({"bundle": f"{store}/tiny/1"}, replicas=2)
    with load(f"{site.url}/classify", photo) as seen:
        time.sleep(2)
        for _ in range(3):
            killed, whole = kill_one(site, replicas=2)
            time.sleep(1)
    note = "; ".join(sorted({each.said for each in seen.outcomes if each.said}))
    figures.append(row("replica killed, 3 times", seen, recovered=whole - killed, note=note))
    assert figures[-1].failed == 0


def test_a_replica_that_is_killed_loses_no_request_over_grpc(
    site: Site, store: Path, photo: bytes, figures: Figures
) -> None:
    site.serve({"bundle": f"{store}/tiny/1"}, replicas=2)
    address = f"127.0.0.1:{site.grpc_port}"
    wait_until_routed(address, [NAME])
    with grpc_load(address, photo) as seen:
        time.sleep(2)
        for _ in range(3):
            killed, whole = kill_one(site, replicas=2)
            time.sleep(1)
    note = "; ".join(sorted({outcome.said for outcome in seen.outcomes if outcome.said}))
    scenario = "replica killed, 3 times, gRPC"
    figures.append(row(scenario, seen, recovered=whole - killed, note=note))
    assert figures[-1].failed == 0


def test_a_replica_that_hangs_is_replaced_and_what_it_had_is_answered_by_another(
    site: Site, store: Path, photo: bytes, figures: Figures
) -> None:
    site.serve({"bundle": f"{store}/tiny/1"}, replicas=2)
    with load(f"{site.url}/classify", photo) as seen:
        time.sleep(2)
        pid = site.replicas()[0]["pid"]
        os.kill(pid, signal.SIGSTOP)
        hung = time.monotonic()
        seen_at = wait_until(
            lambda: pid not in {replica["pid"] for replica in site.replicas()},
            lambda: f"still counted: {site.status()}",
            SECONDS_TO_NOTICE,
        )
        whole = site.wait_until_whole(2, without=frozenset([pid]))
        time.sleep(3)
    waited = sum(each.answered - each.asked > 2 for each in seen.outcomes)
    assert waited, "it had no request when it stopped"
    note = f"seen after {seen_at - hung:.1f} s; {waited} requests waited for more than 2 s"
    figures.append(row("replica hangs", seen, recovered=whole - hung, note=note))
    assert figures[-1].failed == 0


def test_a_killed_replica_loses_no_more_than_the_large_bodies_it_has(
    site: Site, store: Path, figures: Figures
) -> None:
    site.serve({"bundle": f"{store}/tiny/1"}, replicas=2)
    noise = np.random.default_rng(5).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    large = cv2.imencode(".png", noise)[1].tobytes()
    with load(f"{site.url}/classify", large, per_second=60) as seen:
        time.sleep(2)
        killed, whole = kill_one(site, replicas=2)
    note = f"bodies of {len(large):,} bytes, which HAProxy does not keep"
    scenario = "replica killed, large bodies"
    figures.append(row(scenario, seen, recovered=whole - killed, note=note))
    assert figures[-1].failed <= CLIENTS


def test_the_only_replica_killed_makes_requests_wait_for_the_next(
    site: Site, store: Path, photo: bytes, figures: Figures
) -> None:
    site.serve({"bundle": f"{store}/tiny/1"}, replicas=1)
    with load(f"{site.url}/classify", photo) as seen:
        time.sleep(2)
        killed, whole = kill_one(site, replicas=1)
        time.sleep(3)
    figures.append(row("the only replica killed", seen, recovered=whole - killed))
    assert figures[-1].failed == 0


def test_a_replica_out_of_memory_loses_no_request_and_is_replaced(
    site: Site, store: Path, photo: bytes, figures: Figures
) -> None:
    site.serve({"bundle": f"{store}/tiny/1"}, replicas=2)
    large = cv2.imencode(".png", np.zeros((SIDE, SIDE, 3), np.uint8))[1].tobytes()
    pid = site.replicas()[0]["pid"]
    with (
        memory_limit(pid, LIMIT_BYTES) as num_kills,
        load(f"{site.url}/classify", photo, per_second=30) as seen,
        httpx.Client(timeout=60) as client,
    ):
        time.sleep(1)
        began = time.monotonic()
        statuses: list[int] = []
        while pid in {replica["pid"] for replica in site.replicas()}:
            statuses.append(client.post(f"{site.url}/classify", content=large).status_code)
            assert time.monotonic() - began < 60, "the limit has not been reached"
        whole = site.wait_until_whole(2, without=frozenset([pid]))
        assert num_kills() == 1, "it went for another reason"
    note = f"{len(statuses)} large images, {statuses.count(200)} of them answered"
    figures.append(row("replica out of memory", seen, recovered=whole - began, note=note))
    assert figures[-1].failed == 0
    assert set(statuses) == {200}
