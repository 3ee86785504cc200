"""Decoding an image: as Sightline does, or as PyTorch's documentation shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from models.preprocess import PreprocessSpec, prepare

SPEC = PreprocessSpec()


def prepared(data: bytes) -> Any:
    """Return the array that Sightline makes of an image's bytes."""
    return prepare(data, SPEC)


def own_transform() -> Callable[[Any], Any]:
    """Return torchvision's usual resize and crop of a Pillow image, to a uint8 tensor."""
    from torchvision import transforms

    pipeline: Callable[[Any], Any] = transforms.Compose(
        [
            transforms.Lambda(_to_rgb),
            transforms.Resize(round(SPEC.height / SPEC.crop_ratio)),
            transforms.CenterCrop(SPEC.height),
            transforms.PILToTensor(),
        ]
    )
    return pipeline


def _to_rgb(image: Any) -> Any:
    return image.convert("RGB")
