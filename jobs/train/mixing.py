"""MixUp and CutMix: training images that are part one, part another, with labels to match.

MixUp (Zhang et al. 2017, arXiv 1710.09412) blends two images; CutMix (Yun et al. 2019, arXiv
1905.04899) puts a rectangle of one into the other. Each image of a batch gets a partner from the
batch and a share of its own.

Shape legend: B images of H x W pixels, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from jobs.data.spoiling import rectangles
from jobs.data.transforms import AugmentConfig


def mix(
    images: Tensor,
    labels: Tensor,
    config: AugmentConfig,
    num_classes: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return mixed copies of uint8 images (B, H, W, 3) and, of labels (B,), the share of each class
    (B, C) in them.
    """
    count, height, width = images.shape[:3]
    device = images.device
    partner = torch.randperm(count, generator=generator).to(device)
    is_mixed, is_cut, *place = torch.rand(4, count, generator=generator)
    chosen = is_mixed < config.mix_probability
    cut = is_cut < 0.5 if config.mixup_alpha and config.cutmix_alpha else config.cutmix_alpha > 0
    cut = torch.as_tensor(cut).expand(count) & chosen
    blended = chosen & ~cut

    # Both as the share that stays; 1 where nothing is mixed.
    stays = _beta(config.mixup_alpha, count, generator).where(blended, 1.0)
    kept = _beta(config.cutmix_alpha, count, generator).where(cut, 1.0)
    mixed = images
    if bool(blended.any()):
        share = stays.view(-1, 1, 1, 1).to(device)
        mixed = images.float().lerp(images[partner].float(), 1 - share).round().to(torch.uint8)
    tall, wide = ((1 - kept).sqrt() * side for side in (height, width))
    top, left = (place[0] * height - tall / 2), (place[1] * width - wide / 2)
    inside = _cut_off(top, left, tall, wide, height, width)
    mixed = torch.where(inside[..., None].to(device), images[partner], mixed)
    # The share of a cut counts the pixels: a rectangle may reach over the border.
    stays = stays * (1 - inside.float().mean(dim=(1, 2)))

    own = functional.one_hot(labels, num_classes).float()
    share = stays.view(-1, 1).to(device)
    return mixed, share * own + (1 - share) * own[partner]


def _beta(alpha: float, count: int, generator: torch.Generator) -> Tensor:
    """Draw from Beta(alpha, alpha), which torch draws from its global generator only."""
    seed = int(torch.randint(2**62, (1,), generator=generator))
    if alpha == 0:
        return torch.ones(count)
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, count)).float()


def _cut_off(
    top: Tensor, left: Tensor, tall: Tensor, wide: Tensor, height: int, width: int
) -> Tensor:
    """Return masks (B, H, W) of rectangles, cut off at the border of the image."""
    bottom, right = (top + tall).round(), (left + wide).round()
    top, left = top.round(), left.round()
    return rectangles(top, left, bottom - top, right - left, height, width)
