"""Batches on their way from the stream to the device, and how long training waits for them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from jobs.data.streams import Batch


def to_device(batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Copy a batch to the device as uint8 (a quarter of the bytes of float32) with its labels."""
    images = torch.from_numpy(batch.images)
    labels = torch.from_numpy(batch.labels)
    return images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


class Timed:
    """Iterates over batches and notes how many seconds it waited for the latest one."""

    def __init__(self, source: Iterator[Batch]) -> None:
        self._source = source
        self.waited = 0.0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            started = time.perf_counter()
            batch = next(self._source, None)
            self.waited = time.perf_counter() - started
            if batch is None:
                return
            yield batch
