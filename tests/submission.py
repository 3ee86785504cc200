"""Jobs that are submitted to a Ray, as a user does it."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from cluster.session import Session

SECONDS = 280
ATTEMPTS = 6
SECONDS_BETWEEN = 5.0
LATE = "No available agent"  # Ray's own, which is late on a busy machine


def submit(session: Session, command: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    """Submit a command with `ray job submit` and return how it ended, with its log. Skips the test
    where another Ray has the port of the agents, for which `ray.init` knows no other one.
    """
    whole = [
        *(sys.executable, "-m", "ray.scripts.scripts", "job", "submit"),
        *("--address", session.dashboard_url, *options, "--", *command),
    ]
    for _ in range(ATTEMPTS):
        done = subprocess.run(whole, capture_output=True, text=True, timeout=SECONDS, check=False)
        if LATE not in done.stderr:
            break
        log = session.folder / "session_latest" / "logs" / "dashboard_agent.log"
        if "failed to bind" in log.read_text():
            pytest.skip("another Ray on this machine has the port of the agents that take jobs")
        time.sleep(SECONDS_BETWEEN)
    return done
