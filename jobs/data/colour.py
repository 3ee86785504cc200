"""Brightness, contrast, saturation and hue of a batch, with factors of its own for every image.

What torchvision's kernels of these names do to one image, for a whole batch at once: on a GPU a
call for each image would take longer than the training step. Rounded once, at the end.

Shape legend: B images of H x W pixels, uint8 (B, 3, H, W); factors (B,).
"""

from __future__ import annotations

import torch
from torch import Tensor

GREY = (0.2989, 0.587, 0.114)  # of red, green and blue, as in ITU-R BT.601 and torchvision


def recolour(
    pixels: Tensor,
    *,
    brightness: Tensor | None = None,
    contrast: Tensor | None = None,
    saturation: Tensor | None = None,
    hue: Tensor | None = None,
) -> Tensor:
    """Return uint8 images with their colours changed, in the order of the arguments. Factors of 1,
    and a hue moved by 0 of its circle, change nothing.
    """
    values = pixels.float()
    if brightness is not None:
        values = (values * _column(brightness, values)).clamp(0, 255)
    if contrast is not None:
        mean = _grey(values).mean(dim=(1, 2, 3), keepdim=True)
        values = _blend(values, mean, contrast)
    if saturation is not None:
        values = _blend(values, _grey(values), saturation)
    if hue is not None:
        values = _turn_hue(values, hue)
    return values.round().clamp(0, 255).to(torch.uint8)


def _blend(values: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (other + _column(factor, values) * (values - other)).clamp(0, 255)


def _grey(values: Tensor) -> Tensor:
    return (values * values.new_tensor(GREY).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def _column(factor: Tensor, values: Tensor) -> Tensor:
    return factor.to(values.device).view(-1, 1, 1, 1)


def _turn_hue(values: Tensor, share: Tensor) -> Tensor:
    """Turn the hue by a share of the circle, through HSV; hue counts in sixths of the circle."""
    red, green, blue = values.unbind(dim=1)
    highest, lowest = values.amax(dim=1), values.amin(dim=1)
    range_ = highest - lowest
    divisor = torch.where(range_ > 0, range_, 1)
    hue = torch.where(
        highest == red,
        (green - blue) / divisor,
        torch.where(highest == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    hue = hue + 6 * _column(share, values)[:, 0]
    # how far a channel lies below the highest, by its distance on the circle
    turned = [
        highest - range_ * torch.minimum(place, 4 - place).clamp(0, 1)
        for place in ((hue + offset) % 6 for offset in (5, 3, 1))
    ]
    return torch.stack(turned, dim=1)
