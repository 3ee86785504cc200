"""What images can be scored with: a served model, or a bundle on workers of our own.

A way is opened, which says what the model is; then it is started, and turns items into rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from jobs.score.answer import Answer
from jobs.score.columns import Columns
from jobs.score.items import Item, Source

Rows: TypeAlias = Sequence[Answer] | Any  # or a table with the columns of a part


@dataclass(frozen=True)
class Model:
    """What is known of a model before it has scored anything."""

    name: str
    kind: str
    has_labels: bool
    has_label_map: bool
    num_classes: int
    embedding_width: int  # 0 where it gives none
    listed: tuple[str, ...] = ()  # labels that scores list, where they cannot change


class Scorer(Protocol):
    """What is started."""

    @property
    def num_retries(self) -> int:
        """How often something was tried again."""
        ...

    @property
    def choice(self) -> Sequence[str] | None:
        """What was chosen when it started, for a resumed run to choose, too."""
        ...

    @property
    def told(self) -> str:
        """Who scores, for people."""
        ...

    def rows(self, items: Iterable[Item]) -> Iterator[Rows]:
        """Yield the rows of all items, in their order. Raises `SightlineError` where the run cannot
        go on.
        """
        ...


class Way(Protocol):
    """One way to score."""

    model: Model

    @property
    def identity(self) -> Mapping[str, Any]:
        """What has to be the same when a run is resumed, beside source and columns."""
        ...

    def start(self, source: Source, columns: Columns) -> AbstractContextManager[Scorer]:
        """Make ready for these columns; leaving it ends everything at once."""
        ...
