"""What a local Ray is told before it starts: HAProxy mode, authentication, sizes, ports, folders.

Pure values: nothing here starts or contacts anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import socket
import tempfile
from pathlib import Path

import psutil

from cluster.container import free_memory, limited_cores
from cluster.resilience import resilience_environment

MARK = "SIGHTLINE_SESSION"
FIXED = "sightline/fixed"  # label of a node whose Ray gets no others
MIN_LOGICAL_CPUS = 4
OBJECT_STORE_SHARE = 0.2
OBJECT_STORE_LIMIT = 8 << 30
# The largest body of a request (`limits.max_body_bytes` of serve_app) and some room beside it: a
# gRPC message is held whole before anybody can refuse it, and Serve's own limit is 2 GiB.
GRPC_MESSAGE_BYTES = 65 << 20
# A Unix socket path holds 107 characters; Ray puts about 65 below its temporary folder.
LONGEST_TEMP_DIR = 40
FREE_PORTS = range(20_000, 30_000)


# What every node needs before Ray starts so that Serve is fast and comes up on a busy machine; the
# manifests in kubernetes/ say the same. What is measured stands in ARCHITECTURE.md.
SERVING = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Scoring requests pass by most of what Serve does for a request (`serve_app.fast_path`).
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_app.fast_path:middlewares",
    "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(GRPC_MESSAGE_BYTES),
    # Serve's controller looks ten times a second for what has changed, and asks the GCS each time:
    # 5 % of a core. Twice a second is soon enough.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # Each replica and proxy hands its counts to Ray ten times a second, even where there are none:
    # once is enough for who looks every few seconds. With the line below 98 -> 70 ms of CPU time a
    # second in a session without requests.
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
    # What the processes of a node take of it is looked up every 5 s by default; the dashboard looks
    # at its own memory as often, and walks through the pages of nine processes for it: 9 ms of CPU
    # time a second.
    "REPORTER_UPDATE_INTERVAL_MS": "15000",
    "METRICS_RECORD_INTERVAL_S": "60",
    # Ray times each of its own steps, in every process, for a file that only its developers read:
    # 3 % of what its processes take.
    "RAY_event_stats": "0",
    # HAProxy would write a line per request that its manager reads in Python: 0.3 ms per request.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # The log monitor, which carries what workers print to drivers, lists all files ten times a
    # second unless there are more than this; then only as often as said here.
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": "2",
    # A proxy that is not ready after the third look is killed, and with the default of 5 s on a
    # busy machine it never was.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
}

# What every node that streams images needs, and the manifests of such clusters say too: objects
# that nobody needs any more, such as decoded images, are freed one by one and soon. By default a
# hundred at a time or after a second: with batches of 29 MiB the shared memory of a stream was
# 758 MiB instead of 101 (one run each), its speed the same.
# Arrow is to take memory from glibc, as the drivers of jobs do (`jobs/__init__.py`).
STREAMING = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "RAY_free_objects_period_milliseconds": "50",
    "RAY_free_objects_batch_size": "1",
}


def serving_environment() -> dict[str, str]:
    """Return the variables of `SERVING` and those that depend on this machine."""
    return {
        **SERVING,
        "RAY_SERVE_HAPROXY_NBTHREAD": haproxy_threads(usable_cores()),
        **resilience_environment(),
        # Two sessions on one machine would collide on the default ports: of HAProxy's own pages,
        # and of the proxy that stands in for replicas that are gone.
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
    }


def haproxy_threads(cores: float) -> str:
    """Return how many threads HAProxy has on a node: one where cores are few."""
    return "1" if cores <= 4 else "4"


def session_environment(token: str, mark: str) -> dict[str, str]:
    """Return all variables of a local session. What the user has set already wins, except the
    mark.
    """
    wanted = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_DEDUP_LOGS": "1",
        "RAY_TRAIN_V2_ENABLED": "1",
        # Some S3-compatible stores corrupt or refuse the checksums that newer clients add.
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        # A replica of a cluster waits half a minute for requests on their way from other nodes;
        # here there are none, and stopping took 33 s for it instead of 5.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        **STREAMING,
        **serving_environment(),
    }
    unset = {k: v for k, v in wanted.items() if k not in os.environ}
    return {**unset, **_past_proxies(), MARK: mark}


def _past_proxies() -> dict[str, str]:
    """Return the variables by which requests to this machine go to no proxy of a company's."""
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    hosts = ",".join(filter(None, [others, "localhost,127.0.0.1"]))
    return {"no_proxy": hosts, "NO_PROXY": hosts}


def usable_cores() -> int:
    """Return the cores that this process may run on, and whose time its container may use."""
    cores = len(os.sched_getaffinity(0))
    return min(cores, limited_cores() or cores)


def logical_cpus(configured: int | None = None) -> int:
    """Return how many CPUs to tell Ray of: the cores, but at least 4, so that a training worker and
    the tasks that read for it always fit beside each other on a small machine."""
    return configured or max(MIN_LOGICAL_CPUS, usable_cores())


def temp_folder(home: Path) -> Path:
    """Return Ray's folder for logs and spilled objects: below `home`, or a short path where that is
    too long.
    """
    wanted = home.absolute() / "ray"
    if len(str(wanted)) <= LONGEST_TEMP_DIR:
        return wanted
    digest = hashlib.sha256(str(wanted).encode()).hexdigest()[:8]
    return Path(tempfile.gettempdir()) / f"sightline-{os.getuid()}-{digest}"


def data_cpus() -> float | None:
    """Return how many tasks should decode at once: the real cores of a local session, however many
    it told Ray of.

    None on a cluster: whatever is free there.
    """
    return None if os.environ.get("RAY_ADDRESS") else float(usable_cores())


def object_store_bytes() -> int:
    """Return the size of Ray's shared memory: a fifth of what is free, since blocks of images are
    small here.
    """
    return min(OBJECT_STORE_LIMIT, int(free_bytes() * OBJECT_STORE_SHARE))


def free_bytes() -> int:
    """Return how much memory of this machine, or of this container, is free."""
    free, mine = psutil.virtual_memory().available, free_memory()
    return free if mine is None else min(free, mine)


def free_port() -> int:
    """Return a TCP port that nothing listens on.

    It lies below those that systems give to connections and Ray to its replicas: one of these may
    be taken again before it is used, and HAProxy does not start then.
    """
    for port in random.sample(FREE_PORTS, len(FREE_PORTS)):
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("", port))
            return port
    raise OSError(f"every port from {FREE_PORTS[0]} to {FREE_PORTS[-1]} is taken")
