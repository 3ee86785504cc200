"""SIGTERM, with which a cluster ends a job, does what Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Raise `KeyboardInterrupt` at SIGTERM. Ray sets a handler of its own whenever it starts, so
    this has to be entered again behind it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python gives signals to the main thread only
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
