"""Scoring with a model that is served: what it is, and requests to it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from jobs.data.locate import choose_threads
from jobs.score.answer import Answer
from jobs.score.client import Client
from jobs.score.columns import Columns
from jobs.score.endpoint import Endpoint, open_endpoint
from jobs.score.exchange import Exchange, Key
from jobs.score.items import Item, Source
from jobs.score.patience import Patience
from jobs.score.stream import Stream
from jobs.score.ways import Model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asking:
    """How a served model is asked."""

    url: str
    key: Key | None = None
    concurrency: int = 4
    batch: int = 16
    readers: int | None = None
    patience: float = 60.0
    timeout: float = 60.0
    min_revision: int | None = None


class Served:
    """A served model."""

    # Rows of a served model and of a bundle differ in `milliseconds`.
    identity: Mapping[str, Any] = {"bundle": None, "label_revision": None}

    def __init__(self, asking: Asking, stack: ExitStack) -> None:
        """Ask what it is; connections are given back with the stack. Raises `ConfigError`,
        `EndpointError`.
        """
        self._asking = asking
        self._patience = Patience(asking.patience)
        self._exchange = Exchange(
            asking.key, self._patience, timeout=asking.timeout, connections=asking.concurrency
        )
        stack.callback(self._exchange.close)
        self._endpoint = open_endpoint(asking.url, self._exchange)
        self.model = _model(self._endpoint)

    @contextmanager
    def start(self, source: Source, columns: Columns) -> Iterator[ServedScorer]:
        """Ask for what the columns need."""
        client = Client(
            self._endpoint, self._exchange, calls=_calls(columns), query=self._query(columns)
        )
        asking = self._asking
        stream = Stream(
            client,
            self._endpoint,
            self._patience,
            readers=asking.readers or choose_threads(source.uri),
            concurrency=asking.concurrency,
            batch=asking.batch,
        )
        with stream:
            yield ServedScorer(
                stream,
                self._patience,
                f"{asking.concurrency} requests of up to {asking.batch} images at a time",
            )

    def _query(self, columns: Columns) -> dict[str, str]:
        query: dict[str, str] = {"scores": columns.scores}
        if columns.scores == "top":
            query["top_k"] = str(max(1, columns.top_k))
        if self._asking.min_revision is not None:
            query["min_revision"] = str(self._asking.min_revision)
        return query


class ServedScorer:
    """Requests under way."""

    def __init__(self, stream: Stream, patience: Patience, told: str) -> None:
        self.told = told
        self._stream = stream
        self._patience = patience

    @property
    def choice(self) -> None:
        """None: the server chooses."""
        return

    @property
    def num_retries(self) -> int:
        """How often a request was tried again."""
        return self._patience.num_retries

    def rows(self, items: Iterable[Item]) -> Iterator[Sequence[Answer]]:
        """Yield the answers to one request after the other."""
        return self._stream.answers(_without_boxes(items))


def _without_boxes(items: Iterable[Item]) -> Iterator[Item]:
    is_told = False
    for item in items:
        if item.box is not None and not is_told:
            is_told = True
            logger.warning(
                "the source has boxes, which a served model does not know: it is asked about whole "
                "images; --bundle cuts them out"
            )
        yield item


def _model(endpoint: Endpoint) -> Model:
    return Model(
        name=endpoint.model,
        kind=endpoint.kind,
        has_labels="classify" in endpoint.calls,
        has_label_map=endpoint.has_label_map,
        num_classes=endpoint.num_classes,
        embedding_width=endpoint.embedding_width,
    )


def _calls(columns: Columns) -> Sequence[str]:
    wanted = (("classify", columns.has_label), ("embed", columns.embedding_width > 0))
    return [call for call, is_wanted in wanted if is_wanted]
