"""What Ray Serve is told beyond its defaults, so that what dies or dawdles costs no request.

Ray writes HAProxy's configuration from variables. For some rules that matter it has none, but it
puts two of the variables into the file as they are, so further lines stand behind their values.
`tests/faults` shows what each setting is worth; docs/faults.md tells it.
"""

from __future__ import annotations

import resource

# A photo of 40 kB passes in one piece instead of three, each of which would wake the replica. And
# HAProxy sends a request again only if its buffer holds the whole of it, headers included. It
# copies the buffer for each request, full or not: 77 us of CPU time with this size, 58 with Ray's
# 16 KiB, 117 with 256 KiB, 560 with 1 MiB (benchmarks.haproxy_buffer).
BUFFER_BYTES = 128 << 10
MAX_CONNECTIONS = 20_000
# HAProxy does not start where it may not open two and a half files per connection and some more.
FILES_PER_CONNECTION, OTHER_FILES = 2.5, 500

# Scoring is safe to repeat, so a request whose replica dies goes to another one. Not for an answer
# with an error status: the next replica would say the same, and be as busy.
RETRY_ON = "conn-failure empty-response junk-response"
HEADER_SECONDS = 10
BODY_SECONDS = 30
# For a client to take the next part of its answer: a replica and HAProxy hold the rest, by default
# for an hour. A request that has come whole may wait for its answer as long as it takes; between
# two requests `timeout http-request` counts. A stream over gRPC has to be ended by us before this
# does it (`serve_app.oip.grpc_streams`), and a connection without a call comes anew with the next.
READ_SECONDS = 330
# For the answer to HAProxy's own look at a replica; as long as the 5 s between looks by default.
LOOK_SECONDS = 3

_DEFAULTS = f"""{RETRY_ON}
    timeout http-request {HEADER_SECONDS}s"""

# Of every backend. A stream has no end to wait for. Only what is safe to repeat is sent again: a
# replica may have stored a change of labels before it died.
_SAFE = "/classify /embed /infer /ModelInfer"
_BACKEND = f"""5s
    timeout check {LOOK_SECONDS}s
    http-request wait-for-body time {BODY_SECONDS}s unless {{ path_end /ModelStreamInfer }}
    http-request disable-l7-retry unless METH_GET or {{ path_end {_SAFE} }}
    default-server"""  # which takes the `check` that Ray writes behind the interval


def resilience_environment() -> dict[str, str]:
    """Return the variables that every node needs before Ray starts."""
    return {
        "RAY_SERVE_HAPROXY_RETRY_ON": _DEFAULTS,
        "RAY_SERVE_HAPROXY_RETRIES": "3",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BUFFER_BYTES),
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": _BACKEND,
        # A connection that is refused means a dead process: with the default of 3, a request whose
        # only replica had died was sent to it again until it failed.
        "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
        # A kernel takes a connection at once, however busy it is: silence means a lost node.
        "RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S": "2",
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(READ_SECONDS),
        "RAY_SERVE_HAPROXY_MAXCONN": str(max_connections()),
        # A dead HAProxy is replaced after three looks: with the default of 10 s, 31 s later.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        # A replica that hangs cannot end by itself, and its requests go to another one when it is
        # dead: waiting for it, as Serve does by default, keeps them for 20 s more.
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        # What replicas tell the autoscaler: every 10 s by default, which is late in a burst.
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    }


def max_connections() -> int:
    """Return how many connections HAProxy may hold with the files that a process may open here."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1000, min(MAX_CONNECTIONS, int((files - OTHER_FILES) / FILES_PER_CONNECTION)))
