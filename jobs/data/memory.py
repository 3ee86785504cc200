"""Memory that was freed, given back to the system: large tables come and go, and what is left of a
process's memory after them would stay with it.
"""

from __future__ import annotations

import ctypes

import pyarrow as pa


def give_back_memory() -> None:
    """Give the system what neither Arrow nor glibc needs at the moment."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
