"""A run on the terminal: a bar with loss, speed, waiting and time left, and a line per epoch."""

from __future__ import annotations

from rich.console import Console

from jobs.console import Advance
from jobs.lease import Lease
from jobs.train.borders import Notice, Status, Watcher
from jobs.train.history import EpochRecord, describe
from jobs.train.stop import StopRequest


class BarWatcher(Watcher):
    """Shows how a run stands, wherever its workers are; passes on that it is to stop, and ends it
    when another run took its name over.
    """

    def __init__(
        self,
        console: Console,
        advance: Advance,
        lease: Lease,
        stop: StopRequest,
        *,
        quiet_epochs: bool,
    ) -> None:
        self._console, self._advance, self._quiet = console, advance, quiet_epochs
        self._lease, self._stop = lease, stop
        self._done = 0

    def show(self, status: Status) -> None:
        """Move the bar to where the run is: back, if it goes on from an earlier checkpoint."""
        moved, self._done = status.done - self._done, status.done
        total = status.total or None
        if status.is_past:
            self._advance(moved, total, is_past=True)
        else:
            self._advance(moved, total, note=status.note())

    def epoch(self, record: EpochRecord) -> None:
        """Print its figures."""
        if not self._quiet:
            self._console.print(describe(record), highlight=False)

    def notice(self) -> Notice | None:
        """Return that the process is to end. Raises `ConfigError` if the run's name is lost."""
        self._lease.check()
        return self._stop.notice()
