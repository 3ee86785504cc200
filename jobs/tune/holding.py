"""Features that several trials need at once, and only one computes."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack

from jobs.lease import holding
from jobs.train.config import TrainConfig


def holding_features(config: TrainConfig) -> ExitStack:
    """Return what holds the features that a training with a frozen backbone needs, until it is
    closed: trials that need the same wait for the first one, and find them in the cache.
    """
    stack = ExitStack()
    if config.network.freeze == "backbone":
        network = config.network
        augment = (config.augment, config.seed) if network.num_views > 1 else ()
        # Not those that only the head knows, as its dropout.
        part = (network.backbone, network.weights, network.features, network.num_views)
        needs = (config.data, config.preprocess, part, augment)
        digest = hashlib.sha256(repr(needs).encode()).hexdigest()[:16]
        stack.enter_context(
            holding(config.runs, f"features/at-work-{digest}", "runs", float("inf"))
        )
    return stack
