"""What is known of one image after the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.score.items import Item
from jobs.score.reading import Failure


@dataclass(frozen=True, slots=True)
class Answer:
    """One row of the results."""

    item: Item
    label: str | None = None
    confidence: float | None = None
    scores: tuple[tuple[str, float], ...] = ()  # label and probability, best first
    embedding: Sequence[float] | None = None
    model: str | None = None
    version: int | None = None
    engine: str | None = None
    label_revision: int | None = None
    milliseconds: float | None = None
    failure: Failure | None = None
