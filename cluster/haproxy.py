"""What Ray's HAProxy is told beyond Ray's defaults, so that what dies or dawdles costs no request.

Ray writes HAProxy's configuration from variables. For four rules that matter it has none, but it
puts two of the variables into the file as they are, so further lines stand behind their values.
`tests/faults` shows what each is worth; docs/faults.md tells it.
"""

from __future__ import annotations

import resource

# HAProxy sends a request again only if its buffer holds the whole of it, headers included.
BUFFER_BYTES = 128 << 10
MAX_CONNECTIONS = 20_000
# HAProxy does not start where it may not open two and a half files per connection and some more.
FILES_PER_CONNECTION, OTHER_FILES = 2.5, 500

# Scoring is safe to repeat, so a request whose replica dies goes to another one. Not for an answer
# with an error status: the next replica would say the same, and be as busy.
RETRY_ON = "conn-failure empty-response junk-response"
# One request may then cost three replicas, should it be what kills them, and no more.
RETRIES = 2
HEADER_SECONDS = 10
BODY_SECONDS = 30

_DEFAULTS = f"""{RETRY_ON}
    timeout http-request {HEADER_SECONDS}s"""

# Of every backend. gRPC streams have no end to wait for. A change of labels is not sent again: the
# first replica may have stored it before it died.
_BACKEND = f"""5s
    acl is_grpc req.hdr(content-type) -m beg application/grpc
    http-request wait-for-body time {BODY_SECONDS}s unless is_grpc
    http-request disable-l7-retry unless METH_POST or METH_GET
    default-server"""  # which takes the `check` that Ray writes behind the interval


def haproxy_environment() -> dict[str, str]:
    """Return the variables that every node needs before Ray starts."""
    return {
        "RAY_SERVE_HAPROXY_RETRY_ON": _DEFAULTS,
        "RAY_SERVE_HAPROXY_RETRIES": str(RETRIES),
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BUFFER_BYTES),
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": _BACKEND,
        # A kernel takes a connection at once, however busy it is: silence means a lost node.
        "RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S": "2",
        "RAY_SERVE_HAPROXY_MAXCONN": str(max_connections()),
    }


def max_connections() -> int:
    """Return how many connections HAProxy may hold with the files that a process may open here."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1000, min(MAX_CONNECTIONS, int((files - OTHER_FILES) / FILES_PER_CONNECTION)))
