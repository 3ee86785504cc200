"""Random changes to a training batch, on the device where the batch is.

All geometry (flips, turns, rotation, random resized crop) is one affine map per image and one
resampling for the whole batch; torchvision's transforms draw one set of parameters for a batch, and
chaining them would blur an image several times. Colour goes through torchvision v2, with factors of
its own for every image. Flips and right angles alone are exact: they move pixels and resample
nothing.

Shape legend: B images of H x W pixels, uint8 (B, H, W, 3) in and out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional


class AugmentConfig(BaseModel):
    """Random changes to training images. All off by default: only you know what leaves a label
    true.

    Do not flip or turn where orientation is a class (upright, tilted, fallen).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    horizontal_flip: bool = False
    vertical_flip: bool = False
    right_angles: bool = False  # turns by 0, 90, 180 or 270 degrees; needs a square input
    rotate_degrees: float = Field(0.0, ge=0, le=180)  # free rotation, uniform in +- this
    # random resized crop: smallest share of the area kept
    crop_scale: float = Field(1.0, gt=0, le=1)
    crop_aspect: float = Field(1.0, ge=1, le=4)  # and the largest change of its aspect ratio
    brightness: float = Field(0.0, ge=0, le=1)
    contrast: float = Field(0.0, ge=0, le=1)
    saturation: float = Field(0.0, ge=0, le=1)
    hue: float = Field(0.0, ge=0, le=0.5)


@dataclass(frozen=True)
class Augmentation:
    """A configured augmentation; draws from a generator, so a seed gives the same images again."""

    config: AugmentConfig

    @property
    def is_identity(self) -> bool:
        """Whether nothing at all is turned on."""
        return not (self._has_exact or self._has_affine or self._has_colour)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return changed copies of uint8 images (B, H, W, 3)."""
        if self.is_identity:
            return images
        pixels = images.permute(0, 3, 1, 2)
        if self._has_affine:
            pixels = _resample(pixels, self._affine(len(pixels), pixels.shape, generator))
        if self._has_exact:
            pixels = _flip_and_turn(pixels, self.config, generator)
        if self._has_colour:
            pixels = _recolour(pixels, self.config, generator)
        return pixels.permute(0, 2, 3, 1).contiguous()

    @property
    def _has_exact(self) -> bool:
        return self.config.horizontal_flip or self.config.vertical_flip or self.config.right_angles

    @property
    def _has_affine(self) -> bool:
        config = self.config
        return config.rotate_degrees > 0 or config.crop_scale < 1 or config.crop_aspect > 1

    @property
    def _has_colour(self) -> bool:
        config = self.config
        return any((config.brightness, config.contrast, config.saturation, config.hue))

    def _affine(self, count: int, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Return maps (B, 2, 3) from output to input coordinates, both from -1 to 1."""
        height, width = shape[-2:]
        angle = _uniform(count, generator, -1, 1) * math.radians(self.config.rotate_degrees)
        area = _uniform(count, generator, self.config.crop_scale, 1)
        ratio = torch.exp(_uniform(count, generator, -1, 1) * math.log(self.config.crop_aspect))
        # A crop cannot be larger than the image, whatever aspect was drawn.
        size_x = torch.sqrt(area * ratio).clamp(max=1)
        size_y = torch.sqrt(area / ratio).clamp(max=1)
        shift_x = _uniform(count, generator, -1, 1) * (1 - size_x)
        shift_y = _uniform(count, generator, -1, 1) * (1 - size_y)
        cosine, sine, aspect = torch.cos(angle), torch.sin(angle), height / width
        rows = (
            torch.stack([cosine * size_x, -sine * size_y * aspect, shift_x], dim=1),
            torch.stack([sine * size_x / aspect, cosine * size_y, shift_y], dim=1),
        )
        return torch.stack(rows, dim=1)


def _uniform(count: int, generator: torch.Generator, low: float, high: float) -> Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def _resample(pixels: Tensor, maps: Tensor) -> Tensor:
    grid = functional.affine_grid(maps.to(pixels.device), list(pixels.shape), align_corners=False)
    # Mirrored borders: black corners would be a feature that no real image has.
    moved = functional.grid_sample(
        pixels.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    return moved.round().clamp(0, 255).to(torch.uint8)


def _flip_and_turn(pixels: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    count = len(pixels)
    for enabled, dim in ((config.horizontal_flip, 3), (config.vertical_flip, 2)):
        if enabled:
            chosen = (torch.rand(count, generator=generator) < 0.5).to(pixels.device)
            pixels = torch.where(chosen.view(-1, 1, 1, 1), pixels.flip(dim), pixels)
    if config.right_angles:
        turns = torch.randint(0, 4, (count,), generator=generator).to(pixels.device)
        pixels = pixels.clone()
        for quarter in (1, 2, 3):
            chosen = turns == quarter
            pixels[chosen] = torch.rot90(pixels[chosen], quarter, dims=(2, 3))
    return pixels


def _recolour(pixels: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    from torchvision.transforms.v2 import functional as tv

    count = len(pixels)

    def factors(strength: float) -> list[float]:
        return _uniform(count, generator, max(0.0, 1 - strength), 1 + strength).tolist()

    changes = (
        (config.brightness, tv.adjust_brightness, factors(config.brightness)),
        (config.contrast, tv.adjust_contrast, factors(config.contrast)),
        (config.saturation, tv.adjust_saturation, factors(config.saturation)),
        (config.hue, tv.adjust_hue, [(f - 1) for f in factors(config.hue)]),
    )
    images = list(pixels)
    for strength, change, drawn in changes:
        if strength:
            images = [change(image, factor) for image, factor in zip(images, drawn, strict=True)]
    return torch.stack(images)
