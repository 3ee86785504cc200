"""Find and end the processes of one local session, and no others.

A fact one would get wrong: a Ray that is stopped by force leaves its HAProxy running, and that
answers 500 on the port for ever. So every process of a session carries a mark in its environment.
"""

from __future__ import annotations

import contextlib
import os

import psutil

from cluster.environment import MARK

SECONDS_TO_END = 5.0


def marked_processes(mark: str) -> list[psutil.Process]:
    """Return every process that carries the mark of a session, without this one."""
    return [process for process in psutil.process_iter() if _carries(process, mark)]


def end_marked(mark: str) -> int:
    """End every other process that carries the mark of a session; return how many there were."""
    found = marked_processes(mark)
    # By force: nothing here has state worth saving, and Ray's processes answer a request to end
    # with a stack trace.
    for process in found:
        # it ended by itself meanwhile, which is what was wanted
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(found, timeout=SECONDS_TO_END)
    return len(found)


def _carries(process: psutil.Process, mark: str) -> bool:
    if process.pid == os.getpid():
        return False
    try:
        return bool(process.environ().get(MARK) == mark)
    except psutil.Error:
        return False
