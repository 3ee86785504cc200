"""The network that is trained and exported: normalise, backbone, head.

It takes the border tensor, uint8 (N, H, W, 3), and normalises inside, so nothing about pixel values
can drift apart between training and serving. It knows nothing of files: `jobs.train.weights` fills
it.

Shape legend: N images, C classes, D features, the first P of them pooled from the last layer.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.train.stage_moments import StageMoments, read_stages
from models.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Network(nn.Module):
    """A timm backbone with pooled features and a linear head. With `stages` those of the last
    layer are followed by the `StageMoments` of the layers before it; with
    `hidden_units` the head has a layer of so many before its last.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        num_classes: int,
        dropout: float,
        stages: StageMoments | None = None,
        hidden_units: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.stages = stages
        self.num_pooled = num_features - (stages.num_features if stages else 0)
        self.dropout = nn.Dropout(dropout)
        self.hidden: nn.Module = nn.Identity()
        if hidden_units:
            self.hidden = nn.Sequential(
                nn.Linear(num_features, hidden_units), nn.GELU(), nn.Dropout(dropout)
            )
        self.head = nn.Linear(hidden_units or num_features, num_classes)
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 127.5))
        self.register_buffer("std", torch.full((1, 3, 1, 1), 127.5))

    def features(self, images: Tensor) -> Tensor:
        """Return pooled features (N, D) of uint8 or float images (N, H, W, 3) with values 0 to
        255.
        """
        pixels = (images.permute(0, 3, 1, 2).to(torch.float32) - self.mean) / self.std
        if self.stages is None:
            return cast(Tensor, self.backbone(pixels))
        return cast(Tensor, self.stages(self.backbone, pixels))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, C)."""
        return self.logits(self.dropout(self.features(images)))

    def logits(self, features: Tensor) -> Tensor:
        """Return logits (N, C) of features (N, D)."""
        return cast(Tensor, self.head(self.hidden(features)))

    def set_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set mean and standard deviation per channel, in the 0 to 1 scale that weights are
        published with.
        """
        self.mean.copy_(torch.tensor(mean).view(1, 3, 1, 1) * 255)
        self.std.copy_(torch.tensor(std).view(1, 3, 1, 1) * 255)


class ServedNetwork(nn.Module):
    """What is exported: the same network with soft-max and unit-length embedding as its two
    outputs.
    """

    def __init__(self, network: Network, temperature: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities (N, C) and embeddings (N, P) of uint8 images (N, H, W, 3)."""
        features = self.network.features(images)
        logits = self.network.logits(features) / self.temperature
        pooled = features[:, : self.network.num_pooled]
        return functional.softmax(logits, dim=1), functional.normalize(pooled, dim=1)


class FeatureNetwork(nn.Module):
    """The frozen part alone, exported to compute features once."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, D) of uint8 images (N, H, W, 3)."""
        return self.network.features(images)


def build_network(
    backbone: str,
    num_classes: int,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    *,
    reads_stages: bool = False,
    hidden_units: int = 0,
) -> Network:
    """Build the network with random weights; `drop_path` is how often stochastic depth (Huang et
    al. 2016, arXiv 1603.09382) skips its last block. With `reads_stages` the head sees the moments
    of its stages, too; with `hidden_units` it has a layer of so many in between.

    Raises `ConfigError` for a backbone that timm does not have, naming the nearest, that gives no
    pooled features or none of its stages, or whose blocks cannot be skipped where they should be.
    """
    import timm

    if not timm.is_model(backbone):
        near = difflib.get_close_matches(backbone, timm.list_models(), n=3, cutoff=0.4)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise ConfigError(
            f"network.backbone {backbone!r} is not a network of timm {timm.__version__}{hint}. "
            "`python -c 'import timm; print(*timm.list_models())'` lists all"
        )
    try:
        body = _with_drop_path(backbone, drop_path) if drop_path else _create(backbone)
        num_features = _num_features(body)
    except (TypeError, RuntimeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"network.backbone {backbone!r} cannot give one feature vector per image: {error}"
        ) from error
    stages = _stages(body, backbone) if reads_stages else None
    if stages is not None:
        num_features += stages.num_features
    network = Network(body, num_features, num_classes, dropout, stages, hidden_units)
    network.set_normalisation(body.default_cfg["mean"], body.default_cfg["std"])
    return network


def _stages(body: Any, backbone: str) -> StageMoments:
    try:
        return read_stages(body)
    except (TypeError, RuntimeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"network.features stages: backbone {backbone!r} does not give its stages ({error}); "
            "set network.features: pooled, or take another backbone"
        ) from error


def _create(backbone: str, **settings: float) -> Any:
    import timm

    return timm.create_model(backbone, pretrained=False, num_classes=0, **settings)


def _with_drop_path(backbone: str, rate: float) -> Any:
    """Return the backbone with stochastic depth; some networks refuse it, others ignore it."""
    try:
        body = _create(backbone, drop_path_rate=rate)
    except TypeError:
        body = None
    if body is None or not _skips_blocks(body):
        raise ConfigError(
            f"network.drop_path {rate:g}: backbone {backbone!r} has no blocks that can be skipped; "
            "set network.drop_path: 0, or take a residual network, as resnet50 or convnext_tiny"
        )
    return body


def _skips_blocks(body: Any) -> bool:
    """Say whether a forward pass comes by a module that skips: networks without shortcuts may have
    some that they never call.
    """
    from timm.layers import DropPath

    called: list[nn.Module] = []
    hooks = [
        part.register_forward_hook(lambda module, *_: called.append(module))
        for part in body.modules()
        if isinstance(part, DropPath) and part.drop_prob
    ]
    with torch.inference_mode():
        body.eval()(torch.zeros(1, *body.default_cfg["input_size"]))
    body.train()
    for hook in hooks:
        hook.remove()
    return bool(called)


def _num_features(body: Any) -> int:
    """Return the width of the pooled features; timm's `head_hidden_size` differs from
    `num_features` in some nets.
    """
    return int(getattr(body, "head_hidden_size", None) or body.num_features)
