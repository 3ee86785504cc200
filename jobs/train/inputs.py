"""What the network is shown of a batch: made smaller, augmented and mixed, on the batch's device.

Everything random comes from the generator that is passed in, one for each step
(`jobs.train.seeding`), and nothing is kept: a run that goes on in the middle of an epoch sees what
it would have seen.

Shape legend: B images of H x W pixels, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from jobs.data.transforms import Augmentation
from jobs.train.config import TrainConfig
from jobs.train.mixing import mix
from jobs.train.network import Network
from models.errors import ConfigError

STEP = 32  # sizes of progressive resizing are multiples of it


@dataclass(frozen=True)
class Inputs:
    """From the border tensor to the images and targets of one training step."""

    config: TrainConfig
    num_classes: int

    def __call__(
        self, images: Tensor, labels: Tensor, epoch: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return uint8 images (B, h, w, 3) of uint8 images (B, H, W, 3), and their targets: labels
        (B,), or shares of the classes (B, C) where images are mixed.
        """
        images = resize(images, image_size(self.config, epoch))
        images = self._augmentation(images, generator)
        if not self.config.augment.is_mixing:
            return images, labels
        return mix(images, labels, self.config.augment, self.num_classes, generator)

    @cached_property
    def _augmentation(self) -> Augmentation:
        return Augmentation(self.config.augment)


def image_size(config: TrainConfig, epoch: int) -> tuple[int, int]:
    """Return the height and width that images have in an epoch, counted from 0."""
    height, width = config.preprocess.height, config.preprocess.width
    growth = config.progressive
    if growth is None or epoch >= growth.epochs:
        return height, width
    shorter = min(height, width)
    sizes = range(growth.start_size, shorter, STEP)
    shown = sizes[epoch * len(sizes) // growth.epochs]
    return _scaled(height, shown / shorter), _scaled(width, shown / shorter)


def check_sizes(network: Network, config: TrainConfig) -> None:
    """Raise `ConfigError` where the backbone cannot do with a size that the training shows it. The
    network is in eval mode afterwards.
    """
    is_frozen = config.network.freeze == "backbone"  # and sees images at their full size only
    epochs = range(config.epochs - 1 if is_frozen else 0, config.epochs)
    sizes = dict.fromkeys(image_size(config, epoch) for epoch in epochs)
    network.eval()
    for height, width in sizes:
        images = torch.zeros(1, height, width, 3, dtype=torch.uint8)
        try:
            with torch.inference_mode():
                network.features(images)
        except (AssertionError, RuntimeError, ValueError) as error:
            made_for = getattr(network.backbone, "default_cfg", {}).get("input_size", ())[1:]
            told = f"; it was made for {' x '.join(map(str, made_for))}" if made_for else ""
            raise ConfigError(
                f"network.backbone {config.network.backbone!r} takes no images of {height} x "
                f"{width} pixels: {error}{told}. Set preprocess.height and preprocess.width, and "
                "leave progressive out where only one size fits"
            ) from error


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return uint8 images (B, H, W, 3) in another size, bilinear and without aliasing."""
    if tuple(images.shape[1:3]) == size:
        return images
    from torchvision.transforms.v2 import functional as tv

    pixels = tv.resize(images.permute(0, 3, 1, 2), list(size), antialias=True)
    resized: Tensor = pixels.permute(0, 2, 3, 1)
    return resized


def _scaled(side: int, factor: float) -> int:
    return max(STEP, round(side * factor / STEP) * STEP)
