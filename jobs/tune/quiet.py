"""The console belongs to the sweep: what Tune and the trials would print goes elsewhere."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from models.storage import open_store

LOG = "trial.log"
# Tune is told to keep quiet and to leave Ctrl-C and the working directory of trials alone.
QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Tune in the process that runs the sweep."""
    loggers = {name: logging.getLogger(name) for name in ("ray.tune", "ray.air", "ray.train")}
    levels = {name: logger.level for name, logger in loggers.items()}
    before = {name: os.environ.get(name) for name in QUIET}
    os.environ.update(QUIET)
    for logger in loggers.values():
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            loggers[name].setLevel(level)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@contextmanager
def logged(runs: str, name: str) -> Iterator[None]:
    """Write what is logged, if anything is, to `trial.log` of a run when it has ended."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    before = root.handlers[:]
    root.handlers[:] = [handler]
    logging.captureWarnings(True)
    try:
        yield
    finally:
        root.handlers[:] = before
        if text.getvalue():
            open_store(runs).child(name).write(LOG, text.getvalue().encode())
