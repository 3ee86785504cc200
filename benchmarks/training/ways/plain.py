"""The ceiling: a plain loop over images that are in memory, decoded before the clock starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.training.ways.loops import Photos, make_network, run_epochs
from jobs.train.freed_memory import keeping_freed_memory

if TYPE_CHECKING:
    from benchmarks.training.trainer import Request


def run(request: Request) -> dict[str, Any]:
    """Train."""
    photos = Photos(request)
    decoded = [photos[number] for number in range(len(photos))]
    images = torch.from_numpy(np.stack([image for image, _ in decoded]))
    labels = torch.tensor([label for _, label in decoded])
    network = make_network(request, len(photos.classes))

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
        for first in range(0, len(labels) - request.batch_size + 1, request.batch_size):
            rows = order[first : first + request.batch_size]
            yield images[rows], labels[rows]

    with keeping_freed_memory(request.options.get("keeps_freed_memory", False)):
        return run_epochs(request, network, batches)
