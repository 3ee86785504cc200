"""Features from inside a backbone: mean and standard deviation of every channel over each stage's
map, beside what the last layer gives.

The last layer of a pretrained backbone answers the question it was pretrained on. Texture, edges
and contrast, which tell a cracked cell from a sound one, are gone by then, but stand in the maps
before it. A frozen backbone can be no better than what is read from it: Evci et al. 2022
(arXiv 2201.03529) choose among the values of all layers for the same reason.

Shape legend: N images, C channels of a map, P pooled features of the last layer.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

# Larger maps than a quarter of the image's side took half of the time of all, and nothing was
# better for them. Feature pyramids leave them out, too (Lin et al. 2017, arXiv 1612.03144).
LARGEST_PART = 4
MOST_STAGES = 6  # as many maps as networks of convolutions have sizes of them
FEW_STAGES = 4  # taken from networks that have a map per block, as transformers


class StageMoments(nn.Module):
    """Reads a timm backbone's pooled features (N, P) and, per stage, mean and deviation (N, 2C)."""

    def __init__(self, indices: tuple[int, ...], num_features: int) -> None:
        super().__init__()
        self.indices = list(indices)
        self.num_features = num_features  # of all stages together, without the last layer's

    def forward(self, backbone: nn.Module, pixels: Tensor) -> Tensor:
        """Return the features of normalised images (N, 3, H, W), those of the last layer first."""
        final, maps = _walk(backbone, pixels, self.indices)
        pooled = cast(Any, backbone).forward_head(final)
        return torch.cat([pooled, *(part for values in maps for part in _moments(values))], dim=1)


def read_stages(backbone: Any) -> StageMoments:
    """Return what reads this backbone's stages.

    Raises `AttributeError`, `TypeError` or `RuntimeError` for one whose stages timm cannot give.
    """
    example = torch.zeros(1, *backbone.default_cfg["input_size"])
    width = example.shape[-1]
    was_training = backbone.training
    with torch.inference_mode():
        _, maps = _walk(backbone.eval(), example, None)
    backbone.train(was_training)
    small = [n for n, values in enumerate(maps) if values.shape[-1] * LARGEST_PART <= width]
    indices = _spread(small)
    return StageMoments(indices, sum(2 * maps[index].shape[1] for index in indices))


def _walk(backbone: Any, pixels: Tensor, indices: list[int] | None) -> tuple[Tensor, list[Tensor]]:
    """Return the last map and those (N, C, H, W) of the stages."""
    final, maps = backbone.forward_intermediates(pixels, indices=indices)
    return final, maps


def _spread(stages: list[int]) -> tuple[int, ...]:
    """Return which of these are read: all of a few, else some at equal distances, with the last."""
    if len(stages) <= MOST_STAGES:
        return tuple(stages)
    parts = range(1, FEW_STAGES + 1)
    return tuple(stages[len(stages) * part // FEW_STAGES - 1] for part in parts)


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation (N, C) over a map (N, C, H, W)."""
    deviation, mean = torch.std_mean(values, dim=(2, 3), correction=0)
    return mean, deviation
