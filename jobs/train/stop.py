"""SIGTERM while a run trains: it ends at the next step, or batch of a validation, with a checkpoint
of the steps until then, instead of in the middle of one. That is how a cluster takes a machine
back.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jobs.train.borders import Notice


class StopRequest:
    """Whether the process was asked to end. The second time it ends as it would have without."""

    def __init__(self) -> None:
        self._is_made = False

    def notice(self) -> Notice | None:
        """Return the notice that the run ends, from the first signal on."""
        return Notice("SIGTERM", ends=True) if self._is_made else None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM for the length of the context, where this is the main thread: Python gives
        signals to no other. Ray sets a handler of its own when it starts, so enter it after that.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGTERM)

        def handle(number: int, frame: FrameType | None) -> None:
            if self._is_made:
                signal.signal(signal.SIGTERM, before)
                signal.raise_signal(signal.SIGTERM)
            self._is_made = True

        signal.signal(signal.SIGTERM, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
