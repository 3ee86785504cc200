"""How many requests a replica takes at once. Beyond it, 429 at once, before the body is read: a
request that would wait for long is better sent elsewhere or later.

There are two bounds. A burst may queue up to the first, `max_requests` that hold
`max_queued_images`, and is worked off. When even that is passed, more comes than can be answered,
and a long queue would only make everybody wait: for a second then the second bound counts,
`busy_requests`. So a burst is not refused, and under overload an answer takes little longer than
without. Of a request with several images each counts that is not scored yet, since sixteen in one
request keep the next one waiting as long as sixteen requests.

That somebody is refused by the second bound says nothing of how much comes, since one request of
many images passes it, too. So there is a trial after it, with twice the `busy_requests` or half of
`max_queued_images`. Where that is passed soon, the second bound counts for twice as long as before,
for `MAX_BUSY_SECONDS` at last. Simulated for one replica (`tests/serve_app/test_overload.py`, 430
single images a second, random arrivals), p99 in ms of those let in, in the first 30 s and after a
minute:

| comes | no end while refused | trials, at last after 1 s | 4 s | 8 s | whole queue, 8 s | 64 s |
|---|---|---|---|---|---|---|
| 1.1 times that | 151, 28 | 150, 51 | 150, 47 | 150, 43 | 211, 207 | 211, 123 |
| 2 times | 67, 28 | 67, 50 | 67, 35 | 67, 28 | 200, 182 | 194, 28 |
| 3 times | 32, 28 | 55, 49 | 53, 30 | 51, 28 | 186, 168 | 178, 28 |

With 16 images in each request and three times the capacity it is 1,062 and 567 ms (1,063 and 60
without an end, 421 at 80 %); a trial of all of `max_queued_images` made it 840.

A request takes its place when the whole of it has come, so clients that send slowly cannot keep
others out. What unfinished bodies hold is bounded by itself (`arriving`), and so is what those hold
that are inside.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.types import Message

from models.engines.base import Feeding
from serve_app.alarm import Alarm
from serve_app.arriving import Arrival, Arrivals
from serve_app.config import ServeOptions
from serve_app.errors import RequestError
from serve_app.replies import Reply
from serve_app.request import Request
from serve_app.routing import Handler
from serve_app.statistics import Statistics

Answer = TypeVar("Answer")

BUSY_SECONDS, MAX_BUSY_SECONDS = 1.0, 8.0  # for which the second bound counts
TRIAL_SECONDS = 4.0  # after that, for which many requests count as too many
TRIAL_TURNS = 2  # of `busy_requests`
# Places in overload, for each image that the engine runs at a time. At 80 % of the capacity
# (Poisson arrivals) the slowest of a hundred answers takes 3 to 4 times as long as one alone; with
# 8 places it took 2.6 and 3.8 times that under overload, in two runs.
BUSY_TURNS = 6


def busy_requests(options: ServeOptions, feeding: Feeding) -> int:
    """Return how many requests are inside at most while more comes than can be answered."""
    # An engine that takes batches needs one that runs and one that gathers.
    at_once = feeding.parallel * BUSY_TURNS if feeding.mode == "streams" else feeding.max_batch * 2
    return min(options.max_requests, options.max_queued_images, options.busy_requests or at_once)


class Gate:
    """Lets a bounded number of scoring requests in, and counts what becomes of them."""

    def __init__(self, options: ServeOptions, feeding: Feeding, statistics: Statistics) -> None:
        self._max_requests = options.max_requests
        self._max_images = options.max_queued_images
        self.busy_requests = busy_requests(options, feeding)
        self._trial_requests = min(options.max_requests, self.busy_requests * TRIAL_TURNS)
        self._trial_images = options.max_queued_images // 2
        self._busy_until = -math.inf
        self._busy_seconds = BUSY_SECONDS
        self._max_bytes = options.limits.max_queued_bytes
        self._deadline_seconds = options.deadline_seconds
        self.retry_after = str(max(1, math.ceil(options.retry_after_seconds)))
        self._statistics = statistics
        self.num_too_late = 0  # given up while nothing was finished, since the engine proved itself
        self.num_inside = 0
        self.num_more_images = 0  # that wait beside one of each request
        self.num_bytes = 0  # of the bodies of those inside
        self.arrivals = Arrivals(options.limits.max_upload_bytes, self.retry_after)

    @contextmanager
    def admitted(self, num_bytes: int = 0) -> Iterator[None]:
        """Hold a place for a request of so many bytes that has come whole. Raises `RequestError`
        (429).
        """
        with self._statistics.request():
            self._take_place(num_bytes)
            try:
                yield
            finally:
                self.leave(num_bytes)

    async def answered_whole(
        self, answer: Callable[[], Awaitable[Answer]], num_bytes: int = 0
    ) -> Answer:
        """Return the answer to a request of so many bytes that has come whole.

        Raises `RequestError`: 429 where there is no room, 503 when the answer is not there in time.
        """
        with self.admitted(num_bytes), Alarm() as alarm:
            alarm.set(self._deadline_seconds)
            with self._telling(alarm):
                return await answer()

    async def answered(self, handler: Handler, request: Request) -> Reply:
        """Return what the handler answers to a request that is still on its way.

        Raises `RequestError`: 429 where there is no room, before the body is read or after it; 503
        when the answer is not there in time. What waits for a thread then is never begun.
        """
        with self._statistics.request(), Alarm() as alarm:
            self._check_room()
            visit = _Visit(self, request, alarm)
            try:
                with self._telling(alarm):
                    return await handler(request)
            except asyncio.CancelledError:
                visit.check()
                raise
            finally:
                visit.leave()

    def enter(self, alarm: Alarm, num_bytes: int) -> None:
        """Take a place for a request whose body of so many bytes has come, and set its alarm."""
        self._take_place(num_bytes)
        alarm.set(self._deadline_seconds)

    def leave(self, num_bytes: int) -> None:
        """Give back the place of a request that holds so many bytes."""
        self.num_inside -= 1
        self.num_bytes -= num_bytes

    def hold(self, num_bytes: int) -> None:
        """Count bytes that a request inside holds. Raises `RequestError` (429)."""
        if self.num_bytes + num_bytes > self._max_bytes:
            raise RequestError(
                429,
                "queue_full",
                f"the {self.num_inside} requests that this replica has to answer already hold "
                f"{self.num_bytes:,} of {self._max_bytes:,} bytes; try again after "
                f"{self.retry_after} s",
            )
        self.num_bytes += num_bytes

    def count_images(self, images: Sequence[asyncio.Future[Any]]) -> None:
        """Count the images of a request that is inside, each until it is scored or given up."""
        for image in images[1:]:  # the request itself counts for one
            self.num_more_images += 1
            image.add_done_callback(self._forget_image)

    def _forget_image(self, _: asyncio.Future[Any]) -> None:
        self.num_more_images -= 1

    def _take_place(self, num_bytes: int) -> None:
        self._check_room()
        self.hold(num_bytes)
        self.num_inside += 1

    def _check_room(self) -> None:
        num_images = self.num_inside + self.num_more_images
        if num_images < self.busy_requests:
            return
        now = time.monotonic()
        if now >= self._busy_until and self._is_full(now, num_images):
            is_soon = now < self._busy_until + TRIAL_SECONDS
            longer = min(self._busy_seconds * 2, MAX_BUSY_SECONDS)
            self._busy_seconds = longer if is_soon else BUSY_SECONDS
            self._busy_until = now + self._busy_seconds
        if now < self._busy_until:
            raise RequestError(
                429,
                "queue_full",
                f"this replica has {self.num_inside} requests to answer already, with "
                f"{num_images} images; try again after "
                f"{self.retry_after} s",
            )

    def _is_full(self, now: float, num_images: int) -> bool:
        is_trial = now < self._busy_until + TRIAL_SECONDS
        if is_trial:
            return self.num_inside >= self._trial_requests or num_images >= self._trial_images
        return self.num_inside >= self._max_requests or num_images >= self._max_images

    @contextmanager
    def _telling(self, alarm: Alarm) -> Iterator[None]:
        """Tell a client that its time is over. One that has left cancels its request, too, and is
        told nothing.
        """
        try:
            yield
        except asyncio.CancelledError:
            if alarm.has_rung:
                if self._statistics.seconds_since_run() > self._deadline_seconds:
                    self.num_too_late += 1
                raise self._too_late() from None
            raise

    def _too_late(self) -> RequestError:
        return RequestError(
            503,
            "deadline",
            f"no answer within {self._deadline_seconds:g} s of the request's arrival; send fewer "
            f"images at once, try again after {self.retry_after} s, or raise deadline_seconds in "
            "the serve file",
        )


class _Visit:
    """One request at the gate, from its first header on: it sees the body come, and its end."""

    __slots__ = ("_alarm", "_arrival", "_gate", "_is_inside", "_num_bytes", "_receive")

    def __init__(self, gate: Gate, request: Request, alarm: Alarm) -> None:
        self._gate = gate
        self._receive = request.receive
        request.receive, request.note_size = self.receive, self.note_size
        self._alarm = alarm
        self._arrival: Arrival | None = None  # of a body that comes in parts
        self._num_bytes = 0  # that are held inside
        self._is_inside = False

    async def receive(self) -> Message:
        """Return the next part of the request. Raises `RequestError` (429)."""
        message = await self._receive()
        if message["type"] != "http.request" or self._is_inside:
            return message
        num_bytes = len(message.get("body", b""))
        arrival = self._arrival
        if message.get("more_body", False):
            if arrival is None:
                arrival = self._arrival = self._gate.arrivals.begin()
            arrival.add(num_bytes)
        else:
            if arrival is not None:
                num_bytes += arrival.num_bytes
                arrival.end()
            self._gate.enter(self._alarm, num_bytes)
            self._num_bytes, self._is_inside = num_bytes, True
        return message

    def note_size(self, num_bytes: int) -> None:
        """Count a body anew that holds so many bytes now. Raises `RequestError` (429)."""
        if self._is_inside:
            self._gate.hold(num_bytes - self._num_bytes)
            self._num_bytes = num_bytes

    def check(self) -> None:
        """Raise `RequestError` (429) where the task was cancelled for the body to give way."""
        if self._arrival is not None:
            self._arrival.check()

    def leave(self) -> None:
        """Give back what is held."""
        if self._arrival is not None:
            self._arrival.end()
        if self._is_inside:
            self._gate.leave(self._num_bytes)
