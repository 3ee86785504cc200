"""What is minimised: cross-entropy with label smoothing, and class weights against imbalance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.errors import DataError


def class_weights(counts: Sequence[float]) -> Tensor:
    """Return a weight per class (C,), inverse to its number of images (counted by their weights,
    where they have any), with mean 1 over the images.

    Raises `DataError` for a class without images, whose weight would be infinite.
    """
    if not counts or min(counts) <= 0:
        raise DataError(
            f"class weights need at least one image of every class, got counts {list(counts)}"
        )
    images = torch.tensor(counts, dtype=torch.float32)
    return images.sum() / (len(counts) * images)


def build_objective(
    label_smoothing: float, weights: Tensor | None, device: torch.device
) -> nn.CrossEntropyLoss:
    """Return the loss on logits (N, C) and labels (N,)."""
    return nn.CrossEntropyLoss(
        weight=None if weights is None else weights.to(device), label_smoothing=label_smoothing
    )
