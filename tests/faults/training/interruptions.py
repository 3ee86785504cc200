"""Do something to a training when it has come to a step, and see how long it takes to go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.training.runs import WORKERS, begun_by, files_of, lines, number_of, reached

POLL_SECONDS = 0.01


@dataclass
class Interruption:
    """What came of an interruption.

    `pause` is the longest time without a step that begins, in seconds from then on; the time to the
    run's end where none began any more.
    """

    at: int  # the number of the furthest step that had begun; 0 where the run was over before
    pause: float = 0.0
    again: int = 0  # steps of each worker that were begun once more


class _Watch:
    """Follows one run, in a thread of its own."""

    def __init__(
        self, folder: Path, steps: Sequence[int], act: Callable[[int], None], *, restarts: bool
    ) -> None:
        self.found: list[Interruption] = []
        self.error: BaseException | None = None
        self._folder, self._steps, self._act, self._restarts = folder, steps, act, restarts
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def end(self) -> None:
        """Stop following; steps that were not reached have come to nothing."""
        self._done.set()
        self._thread.join()
        missing = len(self._steps) - len(self.found)
        self.found += [Interruption(0) for _ in range(missing)]

    def _work(self) -> None:
        try:
            for number, step in enumerate(self._steps):
                while reached(files_of(self._folder)) < step:
                    if self._done.wait(POLL_SECONDS):
                        return
                self._interrupt(number)
        except BaseException as error:  # raised where the run is
            self.error = error

    def _interrupt(self, number: int) -> None:
        """Act, and wait until the run goes on, or ends."""
        before = files_of(self._folder)
        seen = Interruption(reached(before))
        self.found.append(seen)
        acting = threading.Thread(target=self._acting, args=[number])
        new: list[Path] = []  # of workers that have begun since
        count, since = lines(self._folder), time.monotonic()
        acting.start()
        while not self._done.wait(POLL_SECONDS):
            is_over = not acting.is_alive()
            new = [path for path in files_of(self._folder) if path not in before]
            now = lines(self._folder)
            if now != count:
                seen.pause = max(seen.pause, time.monotonic() - since)
            if is_over and (len(new) >= WORKERS if self._restarts else now != count):
                break
            if now != count:
                count, since = now, time.monotonic()
        else:
            seen.pause = max(seen.pause, time.monotonic() - since)
        acting.join()
        if self._restarts and new:
            first = min(number_of(begun_by(path)[0]) for path in new)
            seen.again = max(0, (reached(before) - 1) // WORKERS - (first - 1) // WORKERS + 1)

    def _acting(self, number: int) -> None:
        try:
            self._act(number)
        except BaseException as error:
            self.error = error


@contextmanager
def at_steps(
    folder: Path, steps: Sequence[int], act: Callable[[int], None], *, restarts: bool = True
) -> Iterator[list[Interruption]]:
    """Call `act` with 0, 1, ... whenever a training in this thread has begun one of these steps,
    counted from 1 over all workers and epochs, and has gone on after the interruption before: with
    other workers, where it `restarts` them.
    """
    watch = _Watch(folder, steps, act, restarts=restarts)
    try:
        yield watch.found
    finally:
        watch.end()
    if watch.error is not None:
        raise watch.error


@contextmanager
def at_step(folder: Path, step: int, act: Callable[[], None]) -> Iterator[None]:
    """Do something when a training in this thread has begun so many steps, over all workers."""
    with at_steps(folder, [step], lambda _: act()):
        yield
