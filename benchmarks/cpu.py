"""CPU time of the processes of one session, by what they are: where a request's time goes.

Unlike images per second, CPU time per image stays nearly the same when somebody else uses the
machine, so it also tells how far a noisy run can be believed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import psutil

from cluster.processes import marked_processes

# The first row whose word is in the command line names the process.
ROLES = (
    ("ServeReplica", "replicas"),
    ("HAProxyManager", "HAProxy manager"),
    ("haproxy", "HAProxy"),
    ("ServeController", "Serve controller"),
    ("ProxyActor", "Serve fallback proxy"),
    ("gcs_server", "GCS"),
    ("raylet", "raylet"),
    ("DashboardAgent", "dashboard agent"),
    ("dashboard", "dashboard"),
    ("ray::", "other workers"),
)


def cpu_seconds(mark: str) -> dict[str, float]:
    """Return the CPU seconds that the processes of a session have used so far, by role."""
    used: defaultdict[str, float] = defaultdict(float)
    for process in marked_processes(mark):
        try:
            times = process.cpu_times()
            role = role_of(" ".join(process.cmdline()))
        except psutil.Error:  # it ended meanwhile
            continue
        used[role] += times.user + times.system
    return used


def busy_seconds() -> float:
    """Return the seconds that all cores together have been busy since the machine started."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


def per_image_ms(
    before: Mapping[str, float], after: Mapping[str, float], images: float
) -> dict[str, float]:
    """Return the CPU milliseconds per image by role, the largest first."""
    spent = {role: (after[role] - before.get(role, 0.0)) * 1e3 / images for role in after}
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


def role_of(command: str) -> str:
    return next((role for word, role in ROLES if word in command), "other")
