"""Find and end the processes of one local session, and no others.

Two facts one would get wrong. A Ray that is stopped by force leaves its HAProxy running, and that
answers 500 on the port for ever: so every process of a session carries a mark in its environment.
And some of Ray's processes (the agents, the parts of the dashboard) write a title over their
environment, so that the mark is gone there: they are found as what a marked one has started.
"""

from __future__ import annotations

import contextlib
import os

import psutil

from cluster.environment import MARK

SECONDS_TO_END = 5.0


def marked_processes(mark: str) -> list[psutil.Process]:
    """Return every process of a session, without this one: those that carry its mark and what they
    started, unless that carries the mark of another session.
    """
    found: dict[int, psutil.Process] = {}
    without: list[tuple[int, psutil.Process]] = []  # with the process id of the parent
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            carried = process.environ().get(MARK)
            if carried == mark:
                found[process.pid] = process
            elif carried is None:
                without.append((process.ppid(), process))
        except psutil.Error:  # it ended meanwhile, or is none of ours
            continue
    while started := [each for each in without if each[0] in found]:
        found |= {process.pid: process for _, process in started}
        without = [each for each in without if each not in started]
    return list(found.values())


def end_marked(mark: str) -> int:
    """End every other process of a session; return how many there were."""
    found = marked_processes(mark)
    # By force: nothing here has state worth saving, and Ray's processes answer a request to end
    # with a stack trace.
    for process in found:
        # it ended by itself meanwhile, which is what was wanted
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(found, timeout=SECONDS_TO_END)
    return len(found)
