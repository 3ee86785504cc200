"""Random changes to a training batch, on the device where the batch is.

All geometry (flips, turns, rotation, random resized crop) is one affine map per image and one
resampling for the whole batch; torchvision's transforms draw one set of parameters for a batch, and
chaining them would blur an image several times. Colour has factors of its own for every image, too
(`jobs.data.colour`). Flips and right angles alone are exact: they move pixels and resample
nothing. MixUp and CutMix, which change labels too, are `jobs.train.mixing`'s.

Shape legend: B images of H x W pixels, uint8 (B, H, W, 3) in and out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from jobs.data.colour import recolour
from jobs.data.rand_augment import MAX_MAGNITUDE, rand_augment
from jobs.data.spoiling import blur, erase


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
    blur: float = Field(0.0, ge=0, le=1)  # share of the images that are blurred
    blur_sigma: float = Field(2.0, gt=0, le=10)  # at most, in pixels of the model's input
    # RandAugment: so many operations on each image. Turns and shears are among them only where
    # rotate_degrees is set.
    randaugment_ops: int = Field(0, ge=0, le=8)
    randaugment_magnitude: int = Field(9, ge=0, le=MAX_MAGNITUDE)
    erase: float = Field(0.0, ge=0, le=1)  # share of the images that lose a rectangle
    erase_area: float = Field(0.33, gt=0, le=1)  # at most, of the image
    # MixUp and CutMix: the Beta distribution that the shares are drawn from; 0 turns one off. With
    # both, each image gets one of the two.
    mixup_alpha: float = Field(0.0, ge=0, le=100)
    cutmix_alpha: float = Field(0.0, ge=0, le=100)
    mix_probability: float = Field(1.0, ge=0, le=1)  # share of the images that are mixed

    @property
    def is_mixing(self) -> bool:
        """Whether images, and with them their labels, are mixed."""
        return self.mix_probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


@dataclass(frozen=True)
class Augmentation:
    """A configured augmentation; draws from a generator, so a seed gives the same images again."""

    config: AugmentConfig

    @property
    def is_identity(self) -> bool:
        """Whether nothing at all is turned on, apart from mixing."""
        config = self.config
        rest = config.randaugment_ops or config.blur or config.erase
        return not (self._has_exact or self._has_affine or self._has_colour or rest)

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
        if self.config.randaugment_ops:
            pixels = rand_augment(
                pixels,
                num_ops=self.config.randaugment_ops,
                magnitude=self.config.randaugment_magnitude,
                max_degrees=self.config.rotate_degrees,
                resample=_resample,
                generator=generator,
            )
        if self.config.blur:
            pixels = blur(
                pixels,
                probability=self.config.blur,
                max_sigma=self.config.blur_sigma,
                generator=generator,
            )
        if self.config.erase:
            pixels = erase(
                pixels,
                probability=self.config.erase,
                max_area=self.config.erase_area,
                generator=generator,
            )
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
    def drawn(strength: float) -> Tensor | None:
        # drawn in any case, so that turning one on leaves the others as they were
        factors = _uniform(len(pixels), generator, max(0.0, 1 - strength), 1 + strength)
        return factors if strength else None

    brightness, contrast, saturation, hue = (
        drawn(config.brightness),
        drawn(config.contrast),
        drawn(config.saturation),
        drawn(config.hue),
    )
    return recolour(
        pixels,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=None if hue is None else hue - 1,
    )
