"""What stands around the replicas dies: Serve's controller, HAProxy, the actor that minds it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from tests.faults.conftest import Figures
from tests.faults.load import OK, load
from tests.faults.report import row
from tests.faults.site import Site, kill, session_processes, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(240)]

SECONDS_WITHOUT = 20.0  # HAProxy; 6 s is what it takes
SLOWEST_WITHOUT_CONTROLLER = 1.5  # the replicas wait for it for 2 s and more
CONTROLLER, HAPROXY, MANAGER = "ray::ServeController", "bin/haproxy", "ray::HAProxyManager"


def test_a_controller_that_is_killed_is_not_noticed(
    site: Site, store: Path, photo: bytes, figures: Figures
) -> None:
    site.serve({"bundle": f"{store}/tiny/1"}, replicas=2)
    (controller,) = session_processes(CONTROLLER)
    before = {replica["pid"] for replica in site.replicas()}
    with load(f"{site.url}/classify", photo) as seen:
        time.sleep(2)
        killed = kill(controller)
        back = wait_until(
            lambda: bool(set(session_processes(CONTROLLER)) - {controller}), lambda: "no controller"
        )
        whole = site.wait_until_whole(2)
        assert {replica["pid"] for replica in site.replicas()} == before
        time.sleep(2)
    figures.append(
        row(
            "controller killed",
            seen,
            recovered=whole - killed,
            note=f"a new one after {back - killed:.1f} s",
        )
    )
    assert figures[-1].failed == 0


def test_while_the_controller_hangs_scoring_goes_on_and_nobody_waits_for_it_long(
    site: Site, store: Path, photo: bytes, figures: Figures
) -> None:
    """The first look at the statistics froze the replica that scores."""
    site.serve({"bundle": f"{store}/tiny/1"}, replicas=2)
    (controller,) = session_processes(CONTROLLER)
    waited: list[float] = []
    with load(f"{site.url}/classify", photo) as seen:
        time.sleep(2)
        os.kill(controller, signal.SIGSTOP)
        try:
            for path in ("/stats", "/stats", ""):  # of either replica
                began = time.monotonic()
                assert httpx.get(f"{site.url}{path}", timeout=20).status_code == 200
                waited.append(time.monotonic() - began)
        finally:
            os.kill(controller, signal.SIGCONT)
        time.sleep(2)
        assert httpx.get(f"{site.url}/stats", timeout=20).json()["replicas"] == 2
    told = ", ".join(f"{seconds:.1f}" for seconds in waited)
    figures.append(row("controller hangs", seen, note=f"who asks for it waits {told} s"))
    assert figures[-1].failed == 0
    assert figures[-1].slowest < SLOWEST_WITHOUT_CONTROLLER
    assert max(waited) < 8


def test_haproxy_killed_is_back_soon(
    site: Site, store: Path, photo: bytes, figures: Figures
) -> None:
    site.serve({"bundle": f"{store}/tiny/1"}, replicas=2)
    with load(f"{site.url}/classify", photo) as seen:
        time.sleep(2)
        for pid in session_processes(HAPROXY):
            killed = kill(pid)
        answered = wait_until(
            lambda: any(each.kind == OK for each in seen.since(killed + 0.5)),
            lambda: f"{seen.kinds}, {session_processes(HAPROXY)}",
        )
        time.sleep(3)
    figures.append(row("HAProxy killed", seen, recovered=answered - killed))
    assert figures[-1].failed, "nobody noticed"
    assert answered - killed < SECONDS_WITHOUT


def test_the_actor_that_minds_haproxy_killed_is_back_soon_with_another(
    site: Site, store: Path, photo: bytes, figures: Figures
) -> None:
    site.serve({"bundle": f"{store}/tiny/1"}, replicas=2)
    (manager,) = session_processes(MANAGER)
    with load(f"{site.url}/classify", photo) as seen:
        time.sleep(2)
        killed = kill(manager)
        back = wait_until(
            lambda: bool(set(session_processes(MANAGER)) - {manager}), lambda: "no manager"
        )
        answered = wait_until(
            lambda: any(each.kind == OK for each in seen.since(killed + 0.5)),
            lambda: f"{seen.kinds}, {session_processes(HAPROXY)}",
        )
        # A change of replicas must still reach HAProxy.
        site.serve({"bundle": f"{store}/tiny/2"}, replicas=2)
        wait_until(lambda: seen.outcomes[-1].version == 2, lambda: "HAProxy was not told")
    figures.append(
        row(
            "manager of HAProxy killed",
            seen,
            recovered=answered - killed,
            note=f"a new one after {back - killed:.1f} s",
        )
    )
    assert answered - killed < SECONDS_WITHOUT
