"""The random numbers of one step, as a function of where the step is."""

from __future__ import annotations

import numpy as np
import torch


def seed_step(seed: int, epoch: int, step: int, rank: int) -> torch.Generator:
    """Return the generator of one step's augmentation, and seed with it what draws from torch's own
    generators: dropout and stochastic depth.
    """
    words = np.random.SeedSequence((seed, epoch, step, rank)).generate_state(2, np.uint32)
    torch.manual_seed(int(words[0]))
    return torch.Generator().manual_seed(int(words[1]))
