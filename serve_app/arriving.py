"""Bodies that are still arriving: what they hold together is bounded.

Where it would be more, whoever sends slowest gives way, not who comes last: else a few clients that
send all of a large body but its end, and then a thousand bytes a second, would keep everybody out
who has more to send than fits a packet.
"""

from __future__ import annotations

import asyncio
import time

from serve_app.errors import RequestError
from serve_app.limits import CLOSE

LOOK_SECONDS = 1.0  # between two looks at how far a body has come; the last one or two are used
SHORTEST_SECONDS = 0.1  # taken for what a body has come in that has just begun


class Arrivals:
    """All bodies that are still arriving at a replica."""

    def __init__(self, max_bytes: int, retry_after: str) -> None:
        """`retry_after` is in how many seconds who is refused may try again."""
        self.num_bytes = 0
        self._max_bytes, self._retry_after = max_bytes, retry_after
        self._all: dict[Arrival, None] = {}  # the oldest first: of equally slow ones it gives way

    def begin(self) -> Arrival:
        """Return a body of which nothing is here; to be made in the task that reads it."""
        arrival = Arrival(self)
        self._all[arrival] = None
        return arrival

    def make_room(self, newest: Arrival) -> None:
        """Let bodies give way until all hold no more than they may. Raises `RequestError` (429)
        where it is the newest that does.
        """
        now = time.monotonic()
        while self.num_bytes > self._max_bytes:
            slowest = min(self._all, key=lambda each: each.speed(now))
            slowest.end()
            if slowest is newest:
                raise self.refusal()
            slowest.give_way()

    def forget(self, arrival: Arrival) -> None:
        """Count a body no more."""
        self.num_bytes -= arrival.num_bytes
        del self._all[arrival]

    def refusal(self) -> RequestError:
        """Return what a client is told whose body gives way."""
        return RequestError(
            429,
            "queue_full",
            f"bodies that are still arriving hold {self._max_bytes:,} bytes already, and this one "
            f"comes slowest; try again after {self._retry_after} s",
            CLOSE,
        )


class Arrival:
    """One body, from its first part to its last."""

    __slots__ = (
        "_earlier",
        "_has_given_way",
        "_is_open",
        "_last",
        "_later",
        "_others",
        "_task",
        "num_bytes",
    )

    def __init__(self, others: Arrivals) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._others, self._task = others, task
        self.num_bytes = 0
        self._is_open, self._has_given_way = True, False
        self._last = time.monotonic()  # when something came
        # When it was looked at, and what had come by then.
        self._earlier = self._later = (self._last, 0)

    def add(self, num_bytes: int) -> None:
        """Count a part that has come. Raises `RequestError` (429) where there is no room for it."""
        now = time.monotonic()
        if now - self._last >= LOOK_SECONDS:  # a look meanwhile would have seen nothing come
            self._earlier = self._later = (now - LOOK_SECONDS, self.num_bytes)
        elif now - self._later[0] >= LOOK_SECONDS:
            self._earlier, self._later = self._later, (now, self.num_bytes)
        self._last = now
        self.num_bytes += num_bytes
        self._others.num_bytes += num_bytes
        self._others.make_room(self)

    def speed(self, now: float) -> float:
        """Return at how many bytes a second it comes; below zero, for how long nothing has come."""
        if now - self._last >= LOOK_SECONDS:
            return self._last - now
        then, num_bytes = self._earlier
        return (self.num_bytes - num_bytes) / max(now - then, SHORTEST_SECONDS)

    def end(self) -> None:
        """Hold nothing any more: the body is whole, or given up."""
        if self._is_open:
            self._is_open = False
            self._others.forget(self)

    def give_way(self) -> None:
        """Wake whoever waits for the rest of the body, to be told so."""
        self._has_given_way = True
        self._task.cancel()

    def check(self) -> None:
        """Raise `RequestError` (429) where the body was made to give way, and not cancelled by
        others as well; to be called where its task was cancelled.
        """
        if self._has_given_way and not self._task.uncancel():
            raise self._others.refusal()
