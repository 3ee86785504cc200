"""What is minimised: cross entropy, focal or logit-adjusted, with label smoothing and class
weights.

All of them take labels, or shares of several classes as MixUp makes them, and give the mean over
the images. That a weighted loss is divided by the number of images, and not by the sum of their
weights as torch's is, makes the gradient of two batches the mean of the gradients of each, which
accumulation and several workers need.

Weights are of images, not of the terms of their loss, and the smoothing of a label follows the
adjustment: the loss of an image is then least where the answer is its own (smoothed) label, however
common its class is. With both done as in torch, a network that knows better calls everything rare
where one of two classes is 19 times as common as the other, at a smoothing of 0.1.

Shape legend: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.train.config import TrainConfig
from models.errors import DataError

FOCAL_GAMMA, ADJUSTED_TAU = 2.0, 1.0  # the papers' own choices
LEAST_DOUBT = 1e-6  # below it the slope of the focal factor would be infinite


def class_weights(counts: Sequence[float]) -> Tensor:
    """Return a weight per class (C,), inverse to its number of images (counted by their weights,
    where they have any), with mean 1 over the images.

    Raises `DataError` for a class without images, whose weight would be infinite.
    """
    images = _counted(counts, "class weights")
    return images.sum() / (len(counts) * images)


class Objective(nn.Module):
    """The loss of logits (N, C) and targets: labels (N,), or shares of the classes (N, C)."""

    weights: Tensor | None
    shift: Tensor | None

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        gamma: float = 0.0,
        weights: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> None:
        """`gamma` above 0 makes it focal (Lin et al. 2017, arXiv 1708.02002): (1 - p)^gamma on the
        term of each class. `shift` (C,) is added to the logits, which makes it logit-adjusted.
        """
        super().__init__()
        self.label_smoothing, self.gamma = label_smoothing, gamma
        self.register_buffer("weights", weights)
        self.register_buffer("shift", shift)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the images."""
        logits = logits.float()
        num_classes = logits.shape[1]
        shares = functional.one_hot(targets, num_classes) if targets.ndim == 1 else targets
        of_images: float | Tensor = 1.0
        if self.weights is not None:
            of_images = (shares * self.weights).sum(dim=1)
        even: float | Tensor = 1 / num_classes
        if self.shift is not None:
            logits = logits + self.shift
            even = self.shift.softmax(dim=0)
        shares = shares * (1 - self.label_smoothing) + self.label_smoothing * even
        likelihood = functional.log_softmax(logits, dim=1)
        terms = shares * likelihood
        if self.gamma:
            terms = terms * (1 - likelihood.exp()).clamp_min(LEAST_DOUBT) ** self.gamma
        return -(terms.sum(dim=1) * of_images).mean()


def build_objective(config: TrainConfig, counts: Sequence[float]) -> Objective:
    """Return the configured loss; `counts` (C,) are the training images of each class.

    Logit-adjusted (Menon et al. 2020, arXiv 2007.07314): tau times the logarithm of a class's share
    is added to its logit while training, and is missing when it answers.

    Raises `DataError` for a class without images where its number counts.
    """
    loss = config.loss
    shift = None
    if loss.kind == "logit_adjusted":
        images = _counted(counts, "loss.kind: logit_adjusted")
        tau = ADJUSTED_TAU if loss.tau is None else loss.tau
        shift = tau * torch.log(images / images.sum())
    gamma = 0.0
    if loss.kind == "focal":
        gamma = FOCAL_GAMMA if loss.gamma is None else loss.gamma
    return Objective(
        label_smoothing=config.optimiser.label_smoothing,
        gamma=gamma,
        weights=class_weights(counts) if config.balance == "weights" else None,
        shift=shift,
    )


def _counted(counts: Sequence[float], what: str) -> Tensor:
    if not counts or min(counts) <= 0:
        raise DataError(
            f"{what} need{'s' if ':' in what else ''} at least one image of every class, got "
            f"counts {list(counts)}"
        )
    return torch.tensor(counts, dtype=torch.float32)
