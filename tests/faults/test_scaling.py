"""Replicas that come and go with the load."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.faults.conftest import Figures
from tests.faults.load import load
from tests.faults.report import row
from tests.faults.site import Site, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(240)]

AUTOSCALING = {
    "min_replicas": 1,
    "max_replicas": 3,
    "target_ongoing_requests": 2,
    "upscale_delay_s": 0,
    "downscale_delay_s": 3,
    "metrics_interval_s": 0.5,
    "look_back_period_s": 2,
}


def test_fewer_replicas_lose_no_request(
    site: Site, store: Path, photo: bytes, figures: Figures
) -> None:
    site.serve({"bundle": f"{store}/tiny/1"}, replicas=3)
    with load(f"{site.url}/classify", photo) as seen:
        time.sleep(2)
        began = time.monotonic()
        site.deploy({"bundle": f"{store}/tiny/1", "replicas": 1})
        whole = site.wait_until_whole(1)
        time.sleep(5)  # the two that go answer what they have
    figures.append(row("scaled from 3 to 1", seen, recovered=whole - began))
    assert figures[-1].failed == 0


def test_a_burst_brings_replicas_that_go_again_without_losing_a_request(
    site: Site, store: Path, photo: bytes, figures: Figures
) -> None:
    site.deploy({"bundle": f"{store}/tiny/1", "autoscaling": AUTOSCALING})
    site.wait_until_whole(1)
    url = f"{site.url}/classify"
    with load(url, photo, clients=4, per_second=20) as quiet:
        began = time.monotonic()
        with load(url, photo, clients=24, per_second=10_000) as burst:
            decided = wait_until(lambda: site.wanted() >= 2, lambda: "no second one wanted")
            grown = wait_until(lambda: len(site.replicas()) >= 2, lambda: "no second replica")
            time.sleep(4)
        most = len(site.replicas())
        shrunk = site.wait_until_whole(1)
        time.sleep(4)
    burst.outcomes += quiet.outcomes
    note = (
        f"wanted after {decided - began:.1f} s, a second replica after {grown - began:.1f} s, "
        f"{most} at most"
    )
    figures.append(row("burst, and back", burst, recovered=shrunk - began, note=note))
    assert figures[-1].failed == 0
