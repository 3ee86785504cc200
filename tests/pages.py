"""Where large blocks of memory come from."""

from __future__ import annotations

import ctypes

import torch

GIB = 1 << 30


class _Figures(ctypes.Structure):
    """`struct mallinfo2` of glibc's malloc.h, of which `hblkhd` are the bytes that were mapped."""

    _fields_ = [(name, ctypes.c_size_t) for name in "abcd"] + [
        ("hblkhd", ctypes.c_size_t),
        *((name, ctypes.c_size_t) for name in "efghi"),
    ]


def is_mapped() -> bool:
    """Say whether a large block is asked of the kernel by itself, and so given back when it is
    freed. It is not touched, so it takes no memory.

    Counting page faults was no way to know: now and then a small object that is made between two
    blocks takes a bite of the first one's place, and the second does not fit there any more.

    In a thread for which `malloc` failed once it says yes for ever: glibc's `arena_get_retry` moves
    that thread to an arena with room for 64 MiB, and the kernel gives the rest.
    """
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = _Figures
    before = library.mallinfo2().hblkhd
    block = torch.empty(GIB, dtype=torch.uint8)
    mapped = library.mallinfo2().hblkhd - before
    del block
    return bool(mapped >= GIB)
