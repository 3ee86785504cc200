"""Answers that their client does not read: what no buffer of the system takes lies with the
replica, counted by nobody, and keeps one that leaves. HAProxy would end the connection after
minutes.

It knows uvicorn's object of one request, its `cycle`, and does nothing where there is none.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from serve_app.logs import OURS

logger = logging.getLogger(OURS)

LOOK_SECONDS = 10.0  # between two looks whether anything was taken


def watch_reading(cycle: Any) -> None:
    """End a connection whose whole answer is written, once its client has taken none of what is
    left between two looks.
    """
    flow = getattr(cycle, "flow", None)
    if flow is not None and flow.write_paused:
        _look_later(cycle.transport, flow)


def _look_later(transport: Any, flow: Any) -> None:
    left = transport.get_write_buffer_size()
    asyncio.get_running_loop().call_later(LOOK_SECONDS, _look, transport, flow, left)


def _look(transport: Any, flow: Any, left: int) -> None:
    if not flow.write_paused:
        return
    if transport.get_write_buffer_size() < left:
        _look_later(transport, flow)
    else:
        logger.info("given up: a client took nothing of its answer for %g s", LOOK_SECONDS)
        transport.abort()
