"""Memory that one training step frees, kept for the next one, where torch computes on a CPU.

glibc asks the kernel for every block of 32 MiB or more, and gives it back as soon as it is free; in
a thread that is not the main one, as those of Ray Train's workers, for smaller ones, too. What the
kernel gives is zeroed page by page as it is first touched. The activations of a step are such
blocks, made and dropped anew in each layer: EfficientNet-Lite0 at 224 x 224 in batches of 32 had
7,600 to 13,400 page faults an image in the main thread and 21,900 in another one, and trained 20.3
and 16.9 images/s; with what is freed kept, 25.1 and 23.1 (2 cores, glibc 2.36, medians of 2 to 4
runs). At 288 x 288 it was 11.1 instead of 6.8. The process's highest memory grew by 6 to 18 %.

Larger pages were no way out: with THP_MEM_ALLOC_ENABLE=1 torch was slower yet (16 images/s).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

TUNABLES = "GLIBC_TUNABLES"
# of malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
NEVER = -1  # as a threshold: the largest size there is
NO_LIMIT = 1 << 62
# What glibc begins with, or arrives at by itself in a process that frees large blocks.
DEFAULT_MMAP_MAX, LARGEST_MMAP_THRESHOLD = 65_536, 32 << 20


@contextmanager
def keeping_freed_memory(wanted: bool = True) -> Iterator[None]:
    """Keep what is freed within this process; at the end the kernel gets back what nobody uses.

    Of little use in a thread that is not the main one: there `tunables` of the process are needed.
    With another C library than glibc nothing happens.
    """
    library = ctypes.CDLL(None)
    if not wanted or not hasattr(library, "mallopt"):
        yield
        return
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        library.mallopt(M_MMAP_MAX, DEFAULT_MMAP_MAX)
        library.mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        library.mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_MMAP_THRESHOLD)
        library.malloc_trim(0)


def tunables() -> dict[str, str]:
    """Return the environment of a process that keeps what any of its threads frees. Settings that
    are in this process's environment stay as they are.
    """
    wanted = {
        "glibc.malloc.mmap_max": 0,
        "glibc.malloc.trim_threshold": NO_LIMIT,
        "glibc.malloc.arena_max": 1,  # the others have 64 MiB at most, and the kernel for the rest
    }
    given = os.environ.get(TUNABLES, "")
    known = {setting.partition("=")[0] for setting in given.split(":")}
    mine = [f"{name}={value}" for name, value in wanted.items() if name not in known]
    return {TUNABLES: ":".join([*filter(None, [given]), *mine])}
