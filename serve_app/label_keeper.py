"""The labels that a replica reads its scores with: fixed, or kept up with a log that may change
while it serves.

A request takes one reading and uses it from start to end. The keeper swaps one reference; a log
that is missing, broken or unreachable leaves the old reading in place, and `status` says so. A
revision may carry `effective_at`: it is fetched at once and read from that instant on, so that all
replicas switch together. Revisions never go back.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Protocol

from models.errors import LabelMapError, NotFoundError, SightlineError, StorageError
from models.label_log import LabelLog
from models.label_map import Reading, first_reading
from models.label_revision import Revision
from serve_app.errors import RequestError, bad_request
from serve_app.logs import OURS

logger = logging.getLogger(OURS)

AT_ONCE = float("-inf")
LATEST = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
# (when, reading) by rising revision; the last one whose time has come counts.
Schedule = tuple[tuple[float, Reading], ...]
PATIENCE_SECONDS = 5.0  # of a request that waits for a revision
FIRST_SECONDS = 5.0  # of a replica that starts and waits for what is there


class Labels(Protocol):
    """What gives a request its reading."""

    def current(self) -> Reading:
        """Return the reading of this moment."""
        ...

    async def at_least(self, revision: int) -> Reading:
        """Return a reading of that revision or a later one, or raise `RequestError`."""
        ...

    def facts(self, reading: Reading) -> dict[str, object]:
        """Return what an answer says of the reading it was made with."""
        ...

    @property
    def num_failures(self) -> int:
        """How often the store did not answer, or held a revision that cannot be read."""
        ...

    def status(self) -> dict[str, Any]:
        """Return where this replica stands, for `/config`; nothing where labels do not change."""
        ...

    async def refreshed(self) -> int:
        """Look for new revisions; return the newest one known."""
        ...

    def close(self) -> None:
        """Stop following the log."""
        ...


class FixedLabels:
    """The classes of the model itself, which never change."""

    num_failures = 0

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def current(self) -> Reading:
        """Return the one reading there is."""
        return self._reading

    async def at_least(self, revision: int) -> Reading:
        """Refuse: there are no revisions."""
        raise bad_request("min_revision: the labels of this model do not change", "bad_parameter")

    def facts(self, reading: Reading) -> dict[str, object]:
        """Return nothing: every answer is made with the same labels."""
        return {}

    def status(self) -> dict[str, Any]:
        """Return nothing: there is no log to stand anywhere in."""
        return {}

    async def refreshed(self) -> int:
        """Return 0: there are no revisions."""
        return 0

    def close(self) -> None:
        """Do nothing."""


class LabelKeeper:
    """Follows the log of one model, by a thread that looks for new revisions, and at once when it
    is told of one.
    """

    def __init__(self, log: LabelLog, poll_seconds: float) -> None:
        """Load what is there; a log that cannot be read, or not soon, leaves the model's own
        classes.
        """
        self.log = log
        self._head = 0
        self.num_failures = 0
        self._unreachable, self._broken = "", ""
        self._write_problem: str | None = None  # "" where the store was tried and is sound
        self._schedule: Schedule = ((AT_ONCE, first_reading(log.classes)),)
        self._refreshing = threading.Lock()
        self._ended = threading.Event()
        # Looks that requests ask for: a thread of their own, so that a slow store blocks nobody
        # else's, one at a time, and one to follow that all who ask meanwhile share.
        self._looker = ThreadPoolExecutor(1, thread_name_prefix="labels")
        self._looking = asyncio.Lock()
        self._next_look: asyncio.Task[int] | None = None
        self._has_looked = threading.Event()
        self._thread = threading.Thread(
            target=self._follow, args=(poll_seconds,), name="labels", daemon=True
        )
        self._thread.start()
        if not self._has_looked.wait(FIRST_SECONDS):
            self.num_failures += 1
            self._unreachable = f"{log.store.uri} has not answered for {FIRST_SECONDS:g} s"
            logger.warning("labels of %s: %s", log.model, self._unreachable)

    def current(self) -> Reading:
        """Return the newest reading whose time has come."""
        schedule = self._schedule
        if len(schedule) == 1:
            return schedule[0][1]
        now = time.time()
        # The first has counted before, whatever a clock that is set back says.
        due = max((n for n, (when, _) in enumerate(schedule) if when <= now), default=0)
        if due:
            self._forget_before(schedule, due)
        return schedule[due][1]

    def _forget_before(self, schedule: Schedule, due: int) -> None:
        """Let a revision whose time has come be the first, so that it counts from now on. While new
        ones are taken up, that is left to the next who asks.
        """
        if self._refreshing.acquire(blocking=False):
            try:
                if self._schedule is schedule:
                    self._schedule = schedule[due:]
            finally:
                self._refreshing.release()

    async def at_least(self, revision: int) -> Reading:
        """Return a reading of that revision or a later one; looks into the log if need be.

        Raises `RequestError` (409) when it is not to be had now.
        """
        slow = ""
        if self.current().revision < revision:
            try:
                await asyncio.wait_for(self.refreshed(), PATIENCE_SECONDS)
            except TimeoutError:
                slow = f"the label store has not answered for {PATIENCE_SECONDS:g} s"
        reading = self.current()
        if reading.revision < revision:
            problem = slow or self._problem()
            why = f"; {problem}" if problem else ""
            raise RequestError(
                409,
                "label_revision",
                f"label revision {revision} is not in effect here, {reading.revision} is{why}",
            )
        return reading

    def facts(self, reading: Reading) -> dict[str, object]:
        """Return the revision."""
        return {"label_revision": reading.revision}

    def status(self) -> dict[str, Any]:
        """Return where this replica stands, and why it is not further."""
        # In this order: what waits in a newer schedule may begin with what counts already.
        schedule = self._schedule
        current = self.current()
        waiting = [
            {"revision": reading.revision, "effective_at": datetime.fromtimestamp(when, UTC)}
            for when, reading in schedule
            if reading.revision > current.revision
        ]
        return {
            "revision": current.revision,
            "names": [label.name for label in current.label_map.living],
            "newest": self._head,
            "waiting": waiting,
            "problem": self._problem(),
            "write_problem": self._write_problem or "",
        }

    @property
    def newest(self) -> int:
        """The newest revision that was seen in the log, sound or not."""
        return self._head

    def check_writes(self) -> None:
        """Raise `StorageError` if the store cannot keep two writers apart. Once it was found sound
        it is not tried again.
        """
        if self._write_problem == "":
            return
        try:
            self.log.check_store()
            self._write_problem = ""
        except StorageError as error:
            self._write_problem = str(error)
            raise

    async def refreshed(self) -> int:
        """Look into the log, from now on; return the newest revision there."""
        if self._next_look is None:
            self._next_look = asyncio.create_task(self._look())
        # Shielded: one who leaves must not take the look away from the others.
        return await asyncio.shield(self._next_look)

    async def _look(self) -> int:
        async with self._looking:
            self._next_look = None  # whoever asks from now on may know of a later revision
            return await asyncio.get_running_loop().run_in_executor(self._looker, self.refresh)

    def refresh(self) -> int:
        """Take up what is new in the log; return the newest revision there. Never raises: a problem
        is kept for `status`, and the labels stay as they are.
        """
        with self._refreshing:
            before = self._problem()
            try:
                head = self.log.advance(self._head) if self._head else self.log.head()
                if head != self._head:
                    self._take_up(head)
                self._unreachable = ""
            except SightlineError as error:
                self.num_failures += 1
                self._unreachable = str(error)
            if self._problem() not in ("", before):
                logger.warning("labels of %s: %s", self.log.model, self._problem())
            return self._head

    def close(self) -> None:
        """Stop following the log."""
        self._ended.set()
        self._looker.shutdown(wait=False, cancel_futures=True)

    def _take_up(self, head: int) -> None:
        """Read the revisions up to `head`, from the newest down to the first that counts already:
        nothing older will ever be read.
        """
        broken = ""
        fresh: list[tuple[float, Reading]] = []
        for number in self.log.downwards(head, self._head):
            try:
                revision = self.log.read(number)
                entry = (_when(revision), Reading(revision.map, self.log.classes, number))
            except (LabelMapError, NotFoundError) as error:
                self.num_failures += 1
                broken = broken or str(error)
                continue
            fresh.append(entry)
            if entry[0] <= time.time():
                break
        schedule = [*self._schedule, *reversed(fresh)]
        now = time.time()
        due = max((n for n, (when, _) in enumerate(schedule) if when <= now), default=0)
        self._schedule, self._head, self._broken = tuple(schedule[due:]), head, broken
        logger.info("labels of %s are at revision %d", self.log.model, head)

    def _problem(self) -> str:
        return self._unreachable or self._broken

    def _follow(self, poll_seconds: float) -> None:
        self._look_on()
        self._has_looked.set()
        try:
            self.check_writes()
        except StorageError as error:
            logger.warning("labels of %s cannot be changed here: %s", self.log.model, error)
        while not self._ended.wait(poll_seconds):
            self._look_on()

    def _look_on(self) -> None:
        try:
            self.refresh()
        # this thread has to live as long as the replica; the labels stay as they are
        except Exception:
            self.num_failures += 1
            logger.exception("labels of %s: looking for a new revision failed", self.log.model)


def _when(revision: Revision) -> float:
    # A last day of all days, in a zone behind, has no time in ours.
    when = revision.effective_at
    return AT_ONCE if when is None else min(when.timestamp(), LATEST)
