"""The stream of images through readers and requests into answers, in the order of the listing.

Memory is bounded by the windows here, whatever the number of images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Self

from jobs.score.ahead import in_order
from jobs.score.answer import Answer
from jobs.score.client import Client, batches
from jobs.score.endpoint import Endpoint
from jobs.score.items import Item
from jobs.score.patience import Patience
from jobs.score.reading import Loaded, Streak, load

READ_AHEAD_BYTES = 64 << 20
REQUEST_BYTES = 8 << 20  # larger images travel fewer to a request
MULTIPART_BYTES = 1024  # more than a body has beside its one image


class Stream:
    """Threads that read ahead, and threads that each have one request under way. Leaving it ends
    all waiting at once; requests under way end by themselves.
    """

    def __init__(
        self,
        client: Client,
        endpoint: Endpoint,
        patience: Patience,
        *,
        readers: int,
        concurrency: int,
        batch: int,
    ) -> None:
        self._client = client
        self._endpoint = endpoint
        self._patience = patience
        self._num_readers = readers
        self._concurrency = concurrency
        self._batch = batch
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="read")
        self._senders = ThreadPoolExecutor(concurrency, thread_name_prefix="send")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._patience.stop()
        for pool in (self._readers, self._senders):
            pool.shutdown(wait=False, cancel_futures=True)

    def answers(self, items: Iterable[Item]) -> Iterator[list[Answer]]:
        """Yield the answers to one request after the other."""
        most = self._endpoint.max_body_bytes - MULTIPART_BYTES
        loaded = in_order(
            self._readers,
            partial(load, max_bytes=min(most, self._endpoint.max_image_bytes)),
            items,
            window=2 * (self._num_readers + self._batch),
            is_full=lambda results: sum(len(r.data) for r in results) > READ_AHEAD_BYTES,
        )
        grouped = batches(
            _watched(loaded), self._endpoint, num_images=self._batch, num_bytes=REQUEST_BYTES
        )
        # Twice as many as can be under way: a slow one must not leave the others without work.
        return in_order(self._senders, self._client.score, grouped, window=2 * self._concurrency)


def _watched(images: Iterable[Loaded]) -> Iterator[Loaded]:
    streak = Streak()
    for image in images:
        streak.follow(image)
        yield image
