"""How long a request that fails is tried again, shared by all requests of a run.

As long as others are answered there is hope: the run gives up when a request fails and nothing at
all has been answered for the given time. So a server that restarts, or is replaced replica by
replica, costs nothing but the wait.
"""

from __future__ import annotations

import logging
import random
import threading
import time

from models.errors import EndpointError

logger = logging.getLogger(__name__)

FIRST_DELAY_SECONDS = 0.25
MAX_DELAY_SECONDS = 8.0
SECONDS_BETWEEN_NOTICES = 15.0


class Trouble(Exception):
    """A request failed in a way that may pass. Never leaves this package.

    `may_be_image`: the server took the request and then failed, so an image in it may be the cause.
    """

    def __init__(self, why: str, *, wait: float | None = None, may_be_image: bool = False) -> None:
        super().__init__(why)
        self.wait = wait
        self.may_be_image = may_be_image


class Stopped(Exception):
    """The run ends, so waiting for another try makes no sense. Never leaves this package."""


class Patience:
    """Waits between tries, and gives up in the end. Safe for many threads."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.num_retries = 0
        self._answered_at = float("-inf")
        self._told_at = float("-inf")
        self._in_trouble = False
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def answered(self) -> None:
        """Note that a request was answered."""
        self._answered_at = time.monotonic()
        if self._in_trouble:
            self._in_trouble = False
            logger.warning("the endpoint answers again")

    def pause(self, trouble: Trouble, tries: int, began: float) -> None:
        """Wait before the next try of a request that first failed at `began` (monotonic seconds).

        Raises `EndpointError` when patience is at its end, and `Stopped` when the run is.
        """
        last = max(began, self._answered_at)
        left = last + self.seconds - time.monotonic()
        if left <= 0:
            raise EndpointError(
                f"{trouble}. Nothing else has been answered for {self.seconds:g} s either "
                "(--patience)"
            )
        self._tell(trouble)
        delay = min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2 ** min(tries, 10))
        delay *= random.uniform(0.5, 1.0)
        if trouble.wait is not None:
            # Not all at the same moment; and a server that says "in an hour" is not waited for.
            delay = max(delay, trouble.wait * random.uniform(1.0, 1.25))
        if self._stopped.wait(min(delay, left)):
            raise Stopped

    def stop(self) -> None:
        """End all waiting."""
        self._stopped.set()

    def _tell(self, trouble: Trouble) -> None:
        with self._lock:
            self.num_retries += 1
            now = time.monotonic()
            if now - self._told_at < SECONDS_BETWEEN_NOTICES:
                return
            self._told_at = now
        # A full queue is everyday life; an outage is news.
        self._in_trouble = trouble.wait is None
        logger.warning("%s; trying again", trouble)
