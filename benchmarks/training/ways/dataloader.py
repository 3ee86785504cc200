"""The plain loop, fed by PyTorch's DataLoader, which decodes as Sightline does."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from benchmarks.training.ways.loops import Photos, make_network, run_epochs

if TYPE_CHECKING:
    from benchmarks.training.trainer import Request


def run(request: Request) -> dict[str, Any]:
    """Train."""
    photos = Photos(request)
    loader = DataLoader(
        photos,
        batch_size=request.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=os.cpu_count() or 1,
        persistent_workers=True,
        generator=torch.Generator().manual_seed(0),
    )
    return run_epochs(request, make_network(request, len(photos.classes)), lambda _: loader)
