"""The processes of Ray that read and decode."""

from __future__ import annotations

import psutil

from cluster.session import Session


def kill_one_task(session: Session) -> bool:
    """Kill a worker of this Ray that works on a chunk of images, if there is one now."""
    for worker in psutil.process_iter(["cmdline"]):
        if any("ray::_call" in part for part in worker.info["cmdline"] or ()):
            try:
                is_ours = any(
                    str(session.folder) in " ".join(up.cmdline()) for up in worker.parents()
                )
                if is_ours:
                    worker.kill()
                    return True
            except psutil.NoSuchProcess:  # done meanwhile
                continue
    return False
