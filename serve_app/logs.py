"""Where this package's log lines go: into the file of Serve's own logger, at a level of their own.

Serve makes a log record for each request, and throws it away where its access log is off: 20 us of
CPU time. With `log_level: WARNING` in the serve file it makes none; our
lines, which are about the model and not about requests, are written all the same.
"""

from __future__ import annotations

import logging

from serve_app.trace import mark_records

SERVE = "ray.serve"  # the one logger that Serve writes to the replica's file
OURS = f"{SERVE}.sightline"


def begin_logging() -> None:
    """Let our lines through whatever the level of Serve's is, and give all lines request ids. To be
    called once Serve has set up its logger.
    """
    mark_records(logging.getLogger(SERVE))
    logging.getLogger(OURS).setLevel(logging.INFO)
