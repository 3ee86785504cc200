"""A node that is lost, with the replicas on it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.conftest import Figures
from tests.faults.load import load
from tests.faults.report import row
from tests.faults.site import Site, kill, session_processes, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(240)]

RAYLET = "raylet/raylet"


def test_a_node_that_is_lost_takes_no_request_with_it(
    site: Site, store: Path, photo: bytes, figures: Figures
) -> None:
    with second_node() as raylet:
        site.serve({"bundle": f"{store}/tiny/1"}, replicas=4)
        nodes = [replica["node_id"] for replica in site.replicas()]
        assert len(set(nodes)) == 2, nodes
        with load(f"{site.url}/classify", photo) as seen:
            time.sleep(2)
            killed = kill(raylet)
            lost = wait_until(
                lambda: len({replica["node_id"] for replica in site.replicas()}) == 1,
                lambda: "the lost node still counts",
            )
            whole = site.wait_until_whole(4)
            time.sleep(2)
    note = f"4 replicas on 2 nodes; the loss is seen after {lost - killed:.1f} s"
    figures.append(row("node lost", seen, recovered=whole - killed, note=note))
    assert figures[-1].failed == 0


@contextmanager
def second_node() -> Iterator[int]:
    """Join a second node on this machine to the session's Ray; gives the process of its raylet."""
    import ray

    before = set(session_processes(RAYLET))
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start"),
        *("--address", ray.get_runtime_context().gcs_address, "--num-cpus", "2"),
        *("--object-store-memory", str(100 << 20), "--disable-usage-stats"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (raylet,) = set(session_processes(RAYLET)) - before
    try:
        yield raylet
    finally:
        if raylet in session_processes(RAYLET):
            kill(raylet)
