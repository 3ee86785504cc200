"""Names that only one process writes to at a time: the folder of a sweep, the run of a trial, and
features that several trials need at once.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from jobs.lease import Lease, acquire
from jobs.train.config import TrainConfig
from models.errors import ConfigError
from models.storage import is_remote, open_store

SECONDS_BETWEEN = 0.5
# A trial of a sweep whose process was killed ends a moment later than that.
PATIENCE_SECONDS = 60.0


@contextmanager
def holding(runs: str, folder: str, option: str, patience_seconds: float = 0.0) -> Iterator[Lease]:
    """Hold a folder below the runs. Raises `ConfigError`, with the advice to give another `option`,
    when somebody else holds it, and still does after so many seconds.
    """
    store = open_store(runs).child(f"{folder}/lock")
    if not is_remote(store.uri):
        Path(store.uri).mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            lease = acquire(store, option)
            break
        except ConfigError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(SECONDS_BETWEEN)
    try:
        yield lease
    finally:
        lease.release(forget=True)
        if not is_remote(store.uri):
            with suppress(OSError):  # another one may have begun in it
                Path(store.uri).rmdir()


def holding_features(config: TrainConfig) -> ExitStack:
    """Return what holds the features that a training with a frozen backbone needs, until it is
    closed: trials that need the same wait for the first one, and find them in the cache.
    """
    stack = ExitStack()
    if config.network.freeze == "backbone":
        network = config.network
        augment = (config.augment, config.seed) if network.num_views > 1 else ()
        # Not those that only the head knows, as its dropout.
        part = (network.backbone, network.weights, network.num_views)
        needs = (config.data, config.preprocess, part, augment)
        digest = hashlib.sha256(repr(needs).encode()).hexdigest()[:16]
        stack.enter_context(
            holding(config.runs, f"features/at-work-{digest}", "runs", float("inf"))
        )
    return stack
