"""What stands around the replicas dies: Serve's controller, HAProxy, the actor that minds it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.faults.conftest import Figures
from tests.faults.load import OK, load
from tests.faults.report import row
from tests.faults.site import Site, kill, session_processes, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(240)]

SECONDS_WITHOUT = 20.0  # HAProxy; 6 s is what it takes
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
