"""What takes detail away from training images: blur, and rectangles that are wiped out.

Shape legend: B images of H x W pixels, uint8 (B, 3, H, W).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

LEAST_SIGMA = 0.1  # pixels, as in SimCLR's blur (arXiv 2002.05709)
LEAST_AREA = 0.02  # of the image that a rectangle takes, as in arXiv 1708.04896
ASPECT = 0.3  # the slimmest rectangle, height to width; 1 / ASPECT is the flattest


def blur(
    pixels: Tensor, *, probability: float, max_sigma: float, generator: torch.Generator
) -> Tensor:
    """Return copies of which some are blurred, each by a Gaussian of its own width up to
    `max_sigma` pixels.
    """
    drawn = torch.rand(2, len(pixels), generator=generator)
    chosen = torch.nonzero(drawn[0] < probability).flatten()
    if not len(chosen):
        return pixels
    low = min(LEAST_SIGMA, max_sigma)
    sigma = drawn[1][chosen] * (max_sigma - low) + low
    height, width = pixels.shape[-2:]
    radius = min(math.ceil(3 * max_sigma), height - 1, width - 1)
    steps = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernels = torch.exp(-0.5 * (steps / sigma[:, None]) ** 2)
    kernels = (kernels / kernels.sum(dim=1, keepdim=True)).to(pixels.device)
    rows = chosen.to(pixels.device)
    # A channel of an image is a channel of its own here, since every image has its own kernel.
    planes = pixels[rows].float().reshape(1, -1, height, width)
    own = kernels.repeat_interleave(3, dim=0)[:, None]
    padded = functional.pad(planes, [radius] * 4, mode="reflect")
    across = functional.conv2d(padded, own[:, :, None], groups=len(own))
    both = functional.conv2d(across, own[..., None], groups=len(own))
    changed = pixels.clone()
    changed[rows] = both.round().clamp(0, 255).to(torch.uint8).view(-1, 3, height, width)
    return changed


def erase(
    pixels: Tensor, *, probability: float, max_area: float, generator: torch.Generator
) -> Tensor:
    """Return copies of which some have one rectangle filled with a random colour (Zhong et al.
    2017, arXiv 1708.04896): a share of the image of up to `max_area`.
    """
    count, _, height, width = pixels.shape
    chosen, area, aspect, top, left = torch.rand(5, count, generator=generator)
    colours = torch.randint(0, 256, (count, 3, 1, 1), generator=generator, dtype=torch.uint8)
    low = min(LEAST_AREA, max_area)
    area = (area * (max_area - low) + low) * height * width
    aspect = torch.exp((aspect * 2 - 1) * math.log(1 / ASPECT))
    tall = torch.sqrt(area * aspect).round().clamp(1, height)
    wide = torch.sqrt(area / aspect).round().clamp(1, width)
    top, left = (top * (height - tall)).round(), (left * (width - wide)).round()
    tall = torch.where(chosen < probability, tall, 0)
    inside = rectangles(top, left, tall, wide, height, width).to(pixels.device)
    return torch.where(inside[:, None], colours.to(pixels.device), pixels)


def rectangles(
    top: Tensor, left: Tensor, tall: Tensor, wide: Tensor, height: int, width: int
) -> Tensor:
    """Return masks (B, H, W) that are true inside of one rectangle each; all arguments (B,)."""
    y, x = torch.arange(height), torch.arange(width)
    rows = (y >= top[:, None]) & (y < (top + tall)[:, None])
    columns = (x >= left[:, None]) & (x < (left + wide)[:, None])
    return rows[:, :, None] & columns[:, None, :]
