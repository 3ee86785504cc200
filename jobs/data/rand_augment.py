"""RandAugment on a batch: each image gets a few operations drawn by lot, all of one strength.

Cubuk et al. 2019, arXiv 1909.13719, with the ranges of torchvision's `RandAugment`. The operations
are torchvision's kernels, each called once for all images that drew it. What moves pixels is left
to the caller as one affine map per image, whose borders are mirrored instead of black.

What differs from the paper: images are turned and sheared only where the caller says by how much
they may be turned, since upright, tilted and fallen may be classes.

Shape legend: B images of H x W pixels, uint8 (B, 3, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MAX_MAGNITUDE = 30  # torchvision counts magnitudes from 0 to 30

Resample = Callable[[Tensor, Tensor], Tensor]

COLOURS = (
    "identity",
    "brightness",
    "contrast",
    "saturation",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
SHIFTS = ("translate_x", "translate_y")
TURNS = ("shear_x", "shear_y", "rotate")


def rand_augment(
    pixels: Tensor,
    *,
    num_ops: int,
    magnitude: float,
    max_degrees: float,
    resample: Resample,
    generator: torch.Generator,
) -> Tensor:
    """Return changed copies of uint8 images (B, 3, H, W).

    `resample` applies maps (B, 2, 3) from output to input coordinates, both from -1 to 1. With
    `max_degrees` 0 nothing is turned or sheared.
    """
    movers = SHIFTS + (TURNS if max_degrees > 0 else ())
    strength = magnitude / MAX_MAGNITUDE
    for _ in range(num_ops):
        drawn = torch.randint(len(COLOURS) + len(movers), (len(pixels),), generator=generator)
        signs = torch.randint(0, 2, (len(pixels),), generator=generator) * 2 - 1
        pixels = pixels.clone()
        for number, name in enumerate(COLOURS[1:], start=1):
            for sign in (-1, 1):
                chosen = torch.nonzero((drawn == number) & (signs == sign)).flatten()
                if len(chosen):
                    rows = chosen.to(pixels.device)
                    pixels[rows] = _recolour(pixels[rows], name, sign * strength)
        moved = torch.nonzero(drawn >= len(COLOURS)).flatten()
        if len(moved):
            rows = moved.to(pixels.device)
            maps = [
                _map(movers[number - len(COLOURS)], sign * strength, max_degrees, pixels.shape)
                for number, sign in zip(drawn[moved].tolist(), signs[moved].tolist(), strict=True)
            ]
            pixels[rows] = resample(pixels[rows], torch.tensor(maps))
    return pixels


def _map(name: str, strength: float, max_degrees: float, shape: torch.Size) -> list[list[float]]:
    """Return the map (2, 3) of one operation; `strength` is from -1 to 1."""
    aspect = shape[-2] / shape[-1]
    cells = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    if name == "translate_x":
        cells[0][2] = 2 * strength * 150 / 331  # the share of the paper's ImageNet crops
    elif name == "translate_y":
        cells[1][2] = 2 * strength * 150 / 331
    elif name == "shear_x":
        cells[0][1] = 0.3 * strength * aspect
    elif name == "shear_y":
        cells[1][0] = 0.3 * strength / aspect
    else:
        angle = math.radians(max(-max_degrees, min(max_degrees, 30 * strength)))
        cells[0][:2] = [math.cos(angle), -math.sin(angle) * aspect]
        cells[1][:2] = [math.sin(angle) / aspect, math.cos(angle)]
    return cells


def _recolour(pixels: Tensor, name: str, strength: float) -> Tensor:
    from torchvision.transforms.v2 import functional as tv

    factor, size = 1 + 0.9 * strength, abs(strength)
    operations: dict[str, Callable[[], Any]] = {
        "brightness": lambda: tv.adjust_brightness(pixels, factor),
        "contrast": lambda: tv.adjust_contrast(pixels, factor),
        "saturation": lambda: tv.adjust_saturation(pixels, factor),
        "sharpness": lambda: tv.adjust_sharpness(pixels, factor),
        "posterize": lambda: tv.posterize(pixels, 8 - round(4 * size)),
        "solarize": lambda: tv.solarize(pixels, 255 * (1 - size)),
        "autocontrast": lambda: tv.autocontrast(pixels),
        "equalize": lambda: tv.equalize(pixels),
    }
    changed: Tensor = operations[name]()
    return changed
