"""The garbage collector, kept out of what a test measures."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_off() -> Iterator[None]:
    """Let nothing be collected meanwhile: it looks through all that the tests before have left."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
