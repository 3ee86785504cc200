"""How the learning rate moves over a run, as a factor on the configured one for every update.

cosine: up to the full rate, then down to zero along half a cosine (arXiv 1608.03983). one_cycle:
from 1/25 up to the full rate and down to 1/250,000, both along half a cosine, as torch's
`OneCycleLR` (arXiv 1708.07120); momentum stays as it is. constant: up, then no change.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from jobs.train.learning_config import OptimiserConfig

Factor = Callable[[int], float]

ONE_CYCLE_RISE = 0.3  # of the run
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_END = ONE_CYCLE_START / 10_000


def build_schedule(
    optimiser: Optimizer, config: OptimiserConfig, *, epochs: int, updates_per_epoch: int
) -> LambdaLR:
    """Return the configured schedule over a run of so many epochs."""
    total = epochs * updates_per_epoch
    warmup = round(warmup_epochs(config, epochs) * updates_per_epoch)
    return LambdaLR(optimiser, FACTORS[config.schedule](warmup, total))


def warmup_epochs(config: OptimiserConfig, epochs: int) -> float:
    """Return how many epochs the rate rises, where the configuration leaves it open too."""
    if config.warmup_epochs is not None:
        return config.warmup_epochs
    return ONE_CYCLE_RISE * epochs if config.schedule == "one_cycle" else min(1.0, epochs / 2)


def warmup_cosine(warmup: int, total: int) -> Factor:
    """Return the factor for an update counted from 0: linear warm-up, cosine decay to zero."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return _half_cosine(1.0, 0.0, (step - warmup) / max(1, total - warmup))

    return factor


def one_cycle(warmup: int, total: int) -> Factor:
    """Return the factor of one cycle whose highest point is the last update of the rise."""
    top, last = max(0, warmup - 1), max(1, total - 1)

    def factor(step: int) -> float:
        if step < top:
            return _half_cosine(ONE_CYCLE_START, 1.0, step / top)
        return _half_cosine(1.0, ONE_CYCLE_END, (step - top) / max(1, last - top))

    return factor


def warmup_constant(warmup: int, total: int) -> Factor:
    """Return the factor of a linear warm-up with nothing after it."""
    return lambda step: min(1.0, (step + 1) / max(1, warmup))


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


FACTORS: dict[str, Callable[[int, int], Factor]] = {
    "cosine": warmup_cosine,
    "one_cycle": one_cycle,
    "constant": warmup_constant,
}
