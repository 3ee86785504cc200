"""What distinguishes a run that was interrupted from one that was left alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.train.checkpoints import State
from jobs.train.config import TrainConfig
from jobs.train.history import EpochRecord
from jobs.train.samples import Steps, read_samples
from jobs.train.worker import open_checkpoints, open_run, open_samples

Lines = list[tuple[int, int | None]]


@dataclass(frozen=True)
class Trace:
    """What a run has left."""

    samples: Steps
    lines: Lines  # of metrics.jsonl: epoch and step
    history: Sequence[EpochRecord]
    state: State


@dataclass(frozen=True)
class Difference:
    """How far two runs are apart."""

    same_samples: bool
    same_lines: bool
    weights: float  # the largest difference of one, moving averages among them
    figures: float  # the largest of losses and validation figures, relative to the figure

    def is_noise(self, tolerance: float) -> bool:
        """Say whether it is nothing but floating-point noise."""
        alike = self.same_samples and self.same_lines
        return alike and self.weights <= tolerance and self.figures <= tolerance


def trace(config: TrainConfig, run_id: str, history: Sequence[EpochRecord]) -> Trace:
    """Read what a run has left. Raises `ValueError` if a step that was done again had other images
    than the first time.
    """
    folder = Path(open_samples(config).child(run_id).uri)
    state = open_checkpoints(config, run_id).load("last")
    assert state is not None
    return Trace(
        samples=read_samples(folder),
        lines=places(open_run(config, run_id).read("metrics.jsonl").decode()),
        history=history,
        state=state,
    )


def places(text: str) -> Lines:
    """Return epoch and step of the lines of metrics.jsonl."""
    parsed = [json.loads(line) for line in text.splitlines()]
    return [(line["epoch"], line.get("step")) for line in parsed]


def compare(one: Trace, other: Trace) -> Difference:
    """Return how far a run is from another one."""
    assert len(one.history) == len(other.history)
    figures = zip(_figures(one.history), _figures(other.history), strict=True)
    weights = [
        float((mine.double() - other.state[part][name].double()).abs().max())
        for part in ("network", "served")
        for name, mine in one.state[part].items()
    ]
    return Difference(
        same_samples=one.samples == other.samples,
        same_lines=one.lines == other.lines,
        # numpy's, of which NaN is the largest
        weights=float(np.max(weights)),
        figures=float(np.max([abs(a - b) / max(abs(b), 1e-12) for a, b in figures])),
    )


def _figures(history: Sequence[EpochRecord]) -> Iterator[float]:
    for record in history:
        validation: dict[str, Any] = record.validation or {}
        yield record.train_loss
        yield from (float(validation[name]) for name in sorted(validation))
