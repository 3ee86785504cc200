"""A consumer like a training loop without a network: takes batches, touches every page of their
arrays, and counts.

Steady state is measured in the middle of a pass: what comes before the window is warm-up, and a
pass goes on behind it. At both ends of the window a loader has as much ready ahead, so that what it
read before does not count for it. That is not so where a loader decodes gigabytes ahead, as Ray
Data does by default, which would have most of the window ready: `whole_per_second` is for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

PAGE_BYTES = 4096

# Images, uint8 with B in front, as an array or a tensor; and for each the number or the name by
# which the set knows it: what a training loop would get the label by.
Batches = Generator[tuple[Any, Any], None, None]


@dataclass(frozen=True)
class Window:
    """Which images of a pass count."""

    warm_up: int
    measured: int


@dataclass
class Pass:
    """What a consumer saw."""

    first_batch_s: float = 0.0
    num_images: int = 0  # in the window
    seconds: float = 0.0
    whole_per_second: float = 0.0  # from opening the pass to the end of the window
    checksum: int = 0
    keys: list[Any] = field(default_factory=list)  # of each batch, the warm-up's too

    @property
    def per_second(self) -> float:
        """Return images per second within the window."""
        return self.num_images / self.seconds if self.seconds else 0.0


def touch(images: Any) -> int:
    """Read a byte of every page, as copying the batch to a device would at least."""
    return int(images.reshape(-1)[::PAGE_BYTES].sum())


def consume(
    open_batches: Callable[[], Batches],
    window: Window,
    at_window: Callable[[bool], None] = lambda _: None,
) -> Pass:
    """Open a pass and read it until the window is full; one that ends before is a `RuntimeError`.

    `at_window` is called with True where the window begins, with False where it ends.
    """
    found = Pass()
    opened = time.perf_counter()
    began, seen = 0.0, 0
    batches = open_batches()
    for images, keys in batches:
        found.checksum += touch(images)
        now = time.perf_counter()
        found.keys.append(keys)
        seen += len(images)
        if not found.first_batch_s:
            found.first_batch_s = now - opened
        if not began:
            if seen >= window.warm_up:
                at_window(True)
                began, at_start = time.perf_counter(), seen
        elif seen - at_start >= window.measured:
            found.num_images, found.seconds = seen - at_start, now - began
            found.whole_per_second = seen / (now - opened)
            at_window(False)
            batches.close()
            return found
    raise RuntimeError(
        f"the pass ended after {seen:,} images; expected more than the "
        f"{window.warm_up + window.measured:,} that are measured"
    )
