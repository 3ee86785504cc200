"""What memory costs the kernel."""

from __future__ import annotations

import resource

import torch


def share_of_faults() -> float:
    """Return for how many of its pages a block that is filled and freed again and again asks the
    kernel.
    """
    # Larger than any hole that other tests have left between what they still hold: a block that
    # fits into one comes from there, and no page of it is new.
    size, rounds = 256 << 20, 5

    def fill() -> None:
        torch.empty(size, dtype=torch.uint8).fill_(1)

    for _ in range(3):
        fill()
    started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        fill()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - started
    return faults * resource.getpagesize() / (size * rounds)
