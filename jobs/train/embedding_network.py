"""The network of kind `embedding`: a backbone, one linear projection of its pooled features, and
unit length.

Shape legend: N images, F pooled features, D numbers in a vector.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.train.config import TrainConfig
from jobs.train.embedding_config import EmbeddingConfig
from jobs.train.metric_learning import build_metric_objective
from jobs.train.network import Network


class EmbeddingNetwork(Network):
    """What is trained. `head` is the projection; `objective` has the weights that only training
    needs.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        num_classes: int,
        dropout: float,
        config: EmbeddingConfig,
    ) -> None:
        super().__init__(backbone, num_features, config.size, dropout)
        # Distances are kept as well as a projection can, whatever the backbone has learnt.
        nn.init.orthogonal_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.norm: nn.Module = (
            nn.BatchNorm1d(config.size) if config.norm == "batch" else nn.Identity()
        )
        self.objective = build_metric_objective(config, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return unit vectors (N, D) of images (N, H, W, 3)."""
        return project(self.dropout(self.features(images)), self.head, self.norm)


class ServedEmbedding(nn.Module):
    """What is exported: the vectors alone, and no weight of the objective."""

    def __init__(self, network: EmbeddingNetwork) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        self.network.objective = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Return unit vectors (N, D) of uint8 images (N, H, W, 3)."""
        return project(self.network.features(images), self.network.head, self.network.norm)


def project(features: Tensor, head: nn.Module, norm: nn.Module) -> Tensor:
    """Return unit vectors (N, D) of pooled features (N, F), in float32 under autocast, too."""
    vectors = cast(Tensor, norm(head(features)))
    return functional.normalize(vectors.float(), dim=1)


def fit_to_kind(network: Network, config: TrainConfig, num_classes: int) -> Network:
    """Return the network as its kind trains it: as it is for one of classes, with a projection for
    `embedding`.
    """
    if config.embedding is None:
        return network
    made = EmbeddingNetwork(
        network.backbone,
        network.head.in_features,
        num_classes,
        network.dropout.p,
        config.embedding,
    )
    with torch.no_grad():
        made.mean.copy_(network.mean)
        made.std.copy_(network.std)
    return made
