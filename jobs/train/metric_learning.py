"""What an embedding is trained by: images of one class shall lie close together on the unit sphere.

Two ways. A cosine soft-max with a margin learns a direction for each class and asks every image to
be nearer to its own than the margin alone would need; it takes batches of any mixture. Supervised
contrastive learning knows only the images of the batch, so it needs several of each class there
(`jobs.data.class_batches`), and with several workers each compares its own batch only.

The class directions are weights of the objective, which is a part of the network in training
(`jobs.train.embedding_network`): so the optimiser, the moving average, checkpoints and the workers'
exchange of gradients have them like any others. What is exported has not.

Shape legend: N images, C classes, D numbers in a vector.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.train.embedding_config import EmbeddingConfig
from models.errors import ConfigError

MIN_SINE_SQUARED = 1e-7  # a square root has no slope at 0


class CosineSoftmax(nn.Module):
    """Soft-max over scaled cosines between vectors and class directions, with a margin on the true
    class.

    `arcface` adds the margin to the angle (Deng et al. 2019, arXiv 1801.07698): cos(angle + m);
    where that would pass pi and turn back, it goes on falling in a straight line instead, as in
    the authors' code. `cosface` takes it off the cosine (Wang et al. 2018, arXiv 1801.09414).
    """

    def __init__(self, size: int, num_classes: int, config: EmbeddingConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(functional.normalize(torch.randn(num_classes, size), dim=1))
        self.is_angular = config.objective == "arcface"
        self.margin, self.scale = config.used_margin, config.used_scale
        self.class_weights: Tensor | None = None  # (C,), how much the images of each class count

    def forward(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of unit vectors (N, D) with labels (N,)."""
        _refuse_mixed(labels)
        # bfloat16 would round cosines to three digits, before they are multiplied by the scale.
        with torch.autocast(vectors.device.type, enabled=False):
            cosines = vectors.float() @ functional.normalize(self.weight.float(), dim=1).T
            own = cosines.gather(1, labels.view(-1, 1))
            logits = self.scale * cosines.scatter(1, labels.view(-1, 1), self._stricter(own))
            counts = self.class_weights
            weight = None if counts is None else counts.to(logits.device)
            # Divided by the images, not by their weights, as `objectives` says.
            return functional.cross_entropy(logits, labels, weight=weight, reduction="none").mean()

    def _stricter(self, cosine: Tensor) -> Tensor:
        if not self.is_angular:
            return cosine - self.margin
        sine = (1 - cosine.square()).clamp_min(MIN_SINE_SQUARED).sqrt()
        turned = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        straight = cosine - self.margin * math.sin(self.margin)
        return torch.where(cosine > -math.cos(self.margin), turned, straight)


class SupervisedContrastive(nn.Module):
    """Every image of a batch shall find those of its class among all others of the batch (Khosla et
    al. 2020, arXiv 2004.11362, their L_out, equation 2), by the mean over images that have one.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of unit vectors (N, D) with labels (N,); 0 where no class occurs twice.

        Memory grows by the square of the batch, as the objective asks for.
        """
        _refuse_mixed(labels)
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.float()
            itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
            alike = (vectors @ vectors.T / self.temperature).masked_fill(itself, float("-inf"))
            chances = functional.log_softmax(alike, dim=1)
            is_positive = (labels.view(-1, 1) == labels.view(1, -1)) & ~itself
            positives = is_positive.sum(dim=1)
            sums = chances.masked_fill(~is_positive, 0.0).sum(dim=1)
            has_any = positives > 0
            if not bool(has_any.any()):
                return vectors.sum() * 0.0
            return -(sums[has_any] / positives[has_any]).mean()


def build_metric_objective(config: EmbeddingConfig, num_classes: int) -> nn.Module:
    """Return the objective on unit vectors (N, D) and labels (N,) that the configuration names."""
    if config.has_class_weights:
        return CosineSoftmax(config.size, num_classes, config)
    return SupervisedContrastive(config.used_temperature)


def weigh_classes(objective: nn.Module, weights: Tensor | None) -> nn.Module:
    """Return the objective, its classes weighed (C,) from now on where there are weights; only a
    soft-max can, which the configuration has checked.
    """
    if weights is not None:
        cast(CosineSoftmax, objective).class_weights = weights
    return objective


def _refuse_mixed(labels: Tensor) -> None:
    if labels.ndim != 1:
        raise ConfigError(
            "augment mixes images (MixUp, CutMix), and kind: embedding learns from whole ones; "
            "turn mixing off in augment"
        )
