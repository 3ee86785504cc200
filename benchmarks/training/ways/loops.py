"""What the loops that are not Sightline's have in common: the same network with the same random
weights, decoded alike, and a step with nothing in it that could be left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader, Dataset

from jobs.train.network import Network, build_network
from models.decoders import IMAGE_SUFFIXES
from models.preprocess import PreprocessSpec, prepare

if TYPE_CHECKING:
    from benchmarks.training.trainer import Request

LEARNING_RATE = 1e-4


class Photos(Dataset[Any]):
    """The training images of a folder of classes as (uint8 (H, W, 3), class)."""

    def __init__(self, request: Request) -> None:
        root = Path(request.uri) / "train"
        self._paths = sorted(
            path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES
        )
        self.classes = sorted({path.parent.name for path in self._paths})
        self._spec = PreprocessSpec(height=request.side, width=request.side)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        path = self._paths[number]
        return prepare(path.read_bytes(), self._spec), self.classes.index(path.parent.name)


def load(photos: Photos, batch_size: int) -> DataLoader[Any]:
    """Return PyTorch's loader with a process for each core, which live as long as it does."""
    return DataLoader(
        photos,
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=os.cpu_count() or 1,
        persistent_workers=True,
        generator=torch.Generator().manual_seed(0),
    )


def make_network(request: Request, num_classes: int) -> Network:
    """Return the network, in training mode, as Sightline's own loop has it."""
    torch.manual_seed(0)
    network = build_network(request.backbone, num_classes, dropout=0.2)
    return network.to(memory_format=torch.channels_last).train()


def make_optimiser(network: nn.Module) -> Optimizer:
    """Return AdamW over everything, the fastest there is of it."""
    return AdamW(network.parameters(), lr=LEARNING_RATE, fused=True)


def loss_of(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of uint8 images (N, H, W, 3)."""
    return functional.cross_entropy(network(images), labels, label_smoothing=0.1)


def run_epochs(
    request: Request, network: nn.Module, batches: Callable[[int], Iterable[tuple[Tensor, Tensor]]]
) -> dict[str, Any]:
    """Train on the batches of each epoch, and return how fast the epochs were."""
    optimiser = make_optimiser(network)
    speeds = []
    for epoch in range(request.epochs):
        started, count = time.perf_counter(), 0
        for images, labels in batches(epoch):
            loss = loss_of(network, images, labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            count += len(labels)
        speeds.append(count / (time.perf_counter() - started))
    return {"epochs": speeds}
