"""The plain loop, fed by PyTorch's DataLoader, which decodes as Sightline does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.training.ways.loops import Photos, load, make_network, run_epochs

if TYPE_CHECKING:
    from benchmarks.training.trainer import Request


def run(request: Request) -> dict[str, Any]:
    """Train."""
    photos = Photos(request)
    loader = load(photos, request.batch_size)
    return run_epochs(request, make_network(request, len(photos.classes)), lambda _: loader)
