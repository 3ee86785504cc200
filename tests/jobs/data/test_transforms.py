"""Augmentation: what is turned on changes images as it says, what is off changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from jobs.data.transforms import Augmentation, AugmentConfig


def photos(count: int = 32, size: int = 24) -> Tensor:
    """Return smooth pictures (B, H, W, 3), all different, none symmetric."""
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    base = torch.stack([x * 200, y * 200, (x + 2 * y) * 60], dim=-1)
    return (base[None] + torch.arange(count)[:, None, None, None]).to(torch.uint8)


def augment(images: Tensor, seed: int = 0, **settings: object) -> Tensor:
    """Apply an augmentation."""
    augmentation = Augmentation(AugmentConfig.model_validate(settings))
    return augmentation(images, torch.Generator().manual_seed(seed))


def test_nothing_turned_on_changes_nothing() -> None:
    assert torch.equal(augment(photos()), photos())


@pytest.mark.parametrize(("name", "dim"), [("horizontal_flip", 1), ("vertical_flip", 0)])
def test_flips_mirror_about_half_of_the_images_exactly(name: str, dim: int) -> None:
    images = photos()
    changed = augment(images, **{name: True})
    flipped = [torch.equal(c, i.flip(dim)) for c, i in zip(changed, images, strict=True)]
    same = [torch.equal(c, i) for c, i in zip(changed, images, strict=True)]
    assert all(f != s for f, s in zip(flipped, same, strict=True))
    assert 6 <= sum(flipped) <= 26


def test_right_angles_give_all_four_turns_and_nothing_else() -> None:
    images = photos(64)
    changed = augment(images, right_angles=True)
    turns = []
    for got, image in zip(changed, images, strict=True):
        (turn,) = [k for k in range(4) if torch.equal(got, torch.rot90(image, k, dims=(0, 1)))]
        turns.append(turn)
    assert set(turns) == {0, 1, 2, 3}


def test_each_image_of_a_batch_gets_its_own_change() -> None:
    same = photos(1).expand(16, -1, -1, -1).contiguous()
    changed = augment(same, rotate_degrees=30, crop_scale=0.5, brightness=0.3)
    assert len({image.numpy().tobytes() for image in changed}) == 16


def test_a_crop_of_the_whole_image_without_rotation_is_the_image() -> None:
    images = photos()
    maps = Augmentation(AugmentConfig(crop_scale=0.999999, rotate_degrees=0))(
        images, torch.Generator().manual_seed(0)
    )
    assert (maps.int() - images.int()).abs().max() <= 1


def test_a_crop_magnifies() -> None:
    images = photos(8, 48)
    changed = augment(images, crop_scale=0.25).float()
    spread = changed[..., 0].amax(dim=(1, 2)) - changed[..., 0].amin(dim=(1, 2))
    assert (spread < 190).all()


def test_another_aspect_alone_changes_images() -> None:
    images = photos(8, 48)
    assert not torch.equal(augment(images, crop_aspect=2), images)


def test_rotation_by_up_to_180_degrees_keeps_the_centre() -> None:
    images = photos(8, 25)
    changed = augment(images, rotate_degrees=180)
    assert (changed[:, 12, 12].int() - images[:, 12, 12].int()).abs().max() <= 8
    assert not torch.equal(changed, images)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_colour_changes_are_within_their_strength(name: str) -> None:
    images = photos()
    changed = augment(images, 0, **{name: 0.2})
    assert changed.dtype == torch.uint8
    assert not torch.equal(changed, images)
    if name == "brightness":
        ratio = changed.float().mean(dim=(1, 2, 3)) / images.float().mean(dim=(1, 2, 3))
        assert ((ratio > 0.78) & (ratio < 1.22)).all()


def test_a_seed_gives_the_same_images_again() -> None:
    settings: dict[str, Any] = {"rotate_degrees": 20, "horizontal_flip": True, "hue": 0.1}
    assert torch.equal(augment(photos(), 5, **settings), augment(photos(), 5, **settings))
    assert not torch.equal(augment(photos(), 5, **settings), augment(photos(), 6, **settings))
