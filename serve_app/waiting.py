"""Waiting for a store that does not answer while a replica starts.

What is not there, not allowed or not sound is told at once: waiting would not help.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from models.errors import AccessError, AlreadyExistsError, NotFoundError, StorageError
from serve_app.logs import OURS

logger = logging.getLogger(OURS)

Opened = TypeVar("Opened")

FINAL = (NotFoundError, AccessError, AlreadyExistsError)
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 5.0


def open_patiently(open_once: Callable[[], Opened], seconds: float) -> Opened:
    """Return what `open_once` opens, tried again for so many seconds where a store does not
    answer or a disk is full; then its last `StorageError` is raised.
    """
    began, pause = time.monotonic(), FIRST_PAUSE_SECONDS
    while True:
        try:
            return open_once()
        except FINAL:
            raise
        except StorageError as error:
            waited = time.monotonic() - began
            if waited + pause > seconds:
                raise
            logger.warning("waiting for a store since %.0f s: %s", waited, error)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
