"""Where the workers of a run and the process that started them tell each other things: an actor, so
that a step costs no call.

The first worker reports once a second and reads in the answer whether the run is to end; the
starting process looks as often. A failure that would come again with every attempt is kept here, so
that Ray Train's next attempts end at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from jobs.train.borders import Notice, Status, StoppedError, Watcher
from jobs.train.history import EpochRecord
from models.errors import SightlineError

# Each report and look takes from the cores that a step needs: four of each about 20 ms of CPU.
SECONDS_BETWEEN = 1.0
SECONDS_TO_STOP = 60.0  # until a worker has heard that it is to
SECONDS_TO_WRITE = 240.0  # until its checkpoint is written: a store is tried for three minutes


@dataclass(frozen=True)
class News:
    """What was told since the last look."""

    status: Status | None = None
    records: list[EpochRecord] = field(default_factory=list)
    failure: SightlineError | None = None
    is_stopping: bool = False  # a worker has heard that it is to


def _latest(waiting: Status | None, new: Status | None) -> Status | None:
    """Return what is to be told: where a run began, before what it has done since."""
    if waiting is not None and waiting.is_past and not (new is not None and new.is_past):
        return waiting
    return new or waiting


class Board:
    """The actor."""

    def __init__(self) -> None:
        self._status: Status | None = None
        self._records: dict[int, EpochRecord] = {}
        self._told: set[int] = set()
        self._notice: Notice | None = None
        self._failure: SightlineError | None = None
        self._is_stopping = False

    def report(
        self, status: Status | None, records: list[EpochRecord], *, is_stopping: bool = False
    ) -> Notice | None:
        """Take what a worker tells; return what is asked of it."""
        self._is_stopping = self._is_stopping or is_stopping
        self._status = _latest(self._status, status)
        self._records |= {record.epoch: record for record in records}
        return self._notice

    def fail(self, failure: SightlineError) -> None:
        """Keep the first failure."""
        self._failure = self._failure or failure

    def failure(self) -> SightlineError | None:
        """Return the failure that ends all attempts."""
        return self._failure

    def ask(self, notice: Notice) -> None:
        """Have the first worker told."""
        self._notice = notice

    def look(self) -> News:
        """Return what is new; each epoch once, also if it was trained again after a kill."""
        fresh = [self._records[epoch] for epoch in sorted(self._records.keys() - self._told)]
        self._told |= self._records.keys()
        status, self._status = self._status, None
        return News(status, fresh, self._failure, self._is_stopping)


class Report(Protocol):
    """Takes what a worker tells to the board, and returns what is asked of it."""

    def __call__(
        self, status: Status | None, records: list[EpochRecord], *, is_stopping: bool
    ) -> Notice | None: ...


class BoardWatcher(Watcher):
    """The first worker's: a thread of its own takes what there is to the board."""

    def __init__(
        self,
        report: Report,
        draining: Callable[[], str | None],
    ) -> None:
        self._report, self._draining = report, draining
        self._status: Status | None = None
        self._records: list[EpochRecord] = []
        self._notice: Notice | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._has_told = False
        self._is_stopping = False
        self._thread = threading.Thread(target=self._work, name="board", daemon=True)
        self._thread.start()

    def show(self, status: Status) -> None:
        """Keep the latest for the next report."""
        with self._lock:
            self._status = _latest(self._status, status)

    def epoch(self, record: EpochRecord) -> None:
        """Keep it for the next report."""
        with self._lock:
            self._records.append(record)

    def notice(self) -> Notice | None:
        """Return what the starting process asks, else, once, that this run's machines go away."""
        if self._notice is not None:
            self._is_stopping = self._notice.ends
            return self._notice
        reason = None if self._has_told else self._draining()
        if reason is None:
            return None
        self._has_told = True
        return Notice(reason, ends=False)

    def close(self) -> None:
        """Tell the last of it."""
        self._ended.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN):
            self._tell()
        self._tell()

    def _tell(self) -> None:
        with self._lock:
            status, self._status = self._status, None
            records, self._records = self._records, []
        self._notice = self._report(status, records, is_stopping=self._is_stopping)


def follow(
    look: Callable[[], News],
    ask: Callable[[Notice], Any],
    is_running: Callable[[], bool],
    watcher: Watcher,
) -> None:
    """Show `watcher` what the workers report until they are done, and hand on what it asks.

    Raises what failed for good, without waiting for Ray Train's further attempts, and what the
    watcher raises, after the workers were asked to end; `StoppedError` if none of them has heard
    that within a minute, as where none has begun, or the checkpoint is not written in time.
    """
    try:
        _follow(look, ask, is_running, watcher)
    except BaseException as error:  # whoever ends this, as a sweep ends a trial, ends the workers
        with suppress(Exception):  # what is raised is what counts
            ask(Notice(str(error) or type(error).__name__, ends=True))
        raise


def _follow(
    look: Callable[[], News],
    ask: Callable[[Notice], Any],
    is_running: Callable[[], bool],
    watcher: Watcher,
) -> None:
    asked: float | None = None
    while True:
        was_running = is_running()
        news = look()
        for record in news.records:
            watcher.epoch(record)
        if news.status is not None:
            watcher.show(news.status)
        if news.failure is not None:
            raise news.failure
        if not was_running:
            return
        notice = watcher.notice()
        if notice is not None and asked is None:
            ask(notice)
            asked = time.monotonic()
        limit = SECONDS_TO_WRITE if news.is_stopping else SECONDS_TO_STOP
        if asked is not None and time.monotonic() - asked > limit:
            what = "no worker has answered"
            if news.is_stopping:
                what = "its checkpoint was not written"
            raise StoppedError(
                f"stopped as it was asked, though {what} within {limit:g} s; the last checkpoint "
                "is from before"
            )
        time.sleep(SECONDS_BETWEEN)
