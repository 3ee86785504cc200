"""What memory costs the kernel."""

from __future__ import annotations

import resource

import torch


def share_of_faults() -> float:
    """Return for how many of its pages a block that is filled and freed again and again asks the
    kernel.
    """
    size, rounds = 80 << 20, 10

    def fill() -> None:
        torch.empty(size, dtype=torch.uint8).fill_(1)

    for _ in range(3):
        fill()
    started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        fill()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - started
    return faults * resource.getpagesize() / (size * rounds)
