"""Answers that their client does not read: what no buffer of the system takes lies with the
replica, counted by nobody, and keeps one that leaves. HAProxy would end the connection after
minutes.

It knows uvicorn's object of one request, its `cycle`, and does nothing where there is none.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import struct
import termios
from typing import Any

from serve_app.logs import OURS

logger = logging.getLogger(OURS)

LOOK_SECONDS = 10.0  # between two looks whether anything was taken

_watching: set[asyncio.Task[None]] = set()  # a loop holds its tasks but weakly


def watch_reading(cycle: Any) -> None:
    """End a connection whose whole answer is written, once its client has taken none of what is
    left between two looks.
    """
    flow = getattr(cycle, "flow", None)
    if flow is not None and flow.write_paused:
        task = asyncio.get_running_loop().create_task(_watch(cycle.transport, flow))
        _watching.add(task)
        task.add_done_callback(_watching.discard)


async def _watch(transport: Any, flow: Any) -> None:
    """Look until the answer is through. The next one on the connection has a watch of its own."""
    while flow.write_paused:
        left = _num_left(transport)
        try:
            await asyncio.wait_for(flow.drain(), LOOK_SECONDS)
            return
        except TimeoutError:
            if _num_left(transport) >= left:
                logger.info("given up: a client took nothing of its answer for %g s", LOOK_SECONDS)
                transport.abort()
                return


def _num_left(transport: Any) -> int:
    """Return how many bytes the client has not taken: ours, and those in the kernel's buffer, which
    asks for more only when a third of it is free.
    """
    size: int = transport.get_write_buffer_size()
    try:
        number = transport.get_extra_info("socket").fileno()
        return size + int(struct.unpack("i", fcntl.ioctl(number, termios.TIOCOUTQ, bytes(4)))[0])
    except (AttributeError, OSError, ValueError):  # a connection that is closed has none
        return size
