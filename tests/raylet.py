"""The processes of a Ray that a test has started."""

from __future__ import annotations

import random
from contextlib import suppress

import psutil

from cluster.session import Session

READER = "ray::_call"  # a task that reads images: `jobs.data.chunks`
SCORER = "ray::_RayWorker"  # an actor of `jobs.score`


def kill_one(session: Session, name: str, draw: random.Random | None = None) -> bool:
    """Kill one of the workers of this name, if there is one now."""
    found = session_workers(session, name)
    if not found:
        return False
    with suppress(psutil.NoSuchProcess):  # done meanwhile
        (draw or random).choice(found).kill()
        return True
    return False


def session_workers(session: Session, name: str) -> list[psutil.Process]:
    """Return the workers of this Ray, and of no other one, whose name begins so: `ray::` and what
    they run.
    """
    found: list[psutil.Process] = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if command and command[0].endswith("raylet") and str(session.folder) in " ".join(command):
            found += process.children()
    return [each for each in found if _command(each).startswith(name)]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # gone meanwhile
        return ""
