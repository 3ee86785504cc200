"""Augmentation: what is turned on changes images as it says, what is off changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from jobs.data.colour import recolour
from jobs.data.rand_augment import rand_augment
from jobs.data.spoiling import blur
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


def test_randaugment_changes_most_images_each_in_its_own_way() -> None:
    same = photos(1).expand(32, -1, -1, -1).contiguous()
    changed = augment(same, randaugment_ops=2, randaugment_magnitude=15)
    assert len({image.numpy().tobytes() for image in changed}) > 8
    assert (changed != same).flatten(1).any(dim=1).sum() > 20


def test_randaugment_of_magnitude_0_moves_no_pixel_and_dims_none() -> None:
    images = photos(64)
    pixels = images.permute(0, 3, 1, 2)
    # These two have no strength: they are either done or not.
    spread = {tv.autocontrast(one).numpy().tobytes() for one in pixels}
    levelled = {tv.equalize(one).numpy().tobytes() for one in pixels}
    changed = augment(images, randaugment_ops=1, randaugment_magnitude=0, rotate_degrees=0)
    kinds = [
        "same" if torch.equal(got, image) else "levelled"
        for got, image in zip(changed, images, strict=True)
        if got.permute(2, 0, 1).contiguous().numpy().tobytes() not in spread | levelled
    ]
    assert set(kinds) == {"same"}


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_colours_change_as_torchvisions_do(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (6, 3, 16, 16), generator=generator).to(torch.uint8)
    pixels[:, :, 0] = 77  # greys have no hue
    values = [-0.3, 0.0, 0.2, 0.45, -0.5, 0.1]
    amounts = torch.tensor(values) if name == "hue" else torch.tensor(values) + 1
    ours = recolour(pixels, **{name: amounts})
    change = getattr(tv, f"adjust_{name}")
    for got, image, amount in zip(ours, pixels, amounts.tolist(), strict=True):
        assert (got.int() - change(image, amount).int()).abs().max() <= 1


@pytest.mark.parametrize("degrees", [0.0, 10.0])
def test_randaugment_turns_only_where_images_may_be_turned(degrees: float) -> None:
    drawn: list[Tensor] = []

    def resample(pixels: Tensor, maps: Tensor) -> Tensor:
        drawn.append(maps)
        return pixels

    pixels = photos(200).permute(0, 3, 1, 2)
    rand_augment(
        pixels,
        num_ops=2,
        magnitude=30,
        max_degrees=degrees,
        resample=resample,
        generator=torch.Generator().manual_seed(0),
    )
    maps = torch.cat(drawn)
    is_turned = (maps[:, 0, 1] != 0) & (maps[:, 1, 0] != 0)
    is_sheared = (maps[:, 0, 1] != 0) != (maps[:, 1, 0] != 0)
    assert (maps[:, :, 2] != 0).any()
    assert bool(is_turned.any()) == bool(is_sheared.any()) == (degrees > 0)
    if degrees:
        angles = torch.rad2deg(torch.asin(maps[is_turned][:, 1, 0]))
        torch.testing.assert_close(angles.abs(), torch.full_like(angles, degrees))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "sharpness"])
def test_randaugment_goes_both_ways(name: str) -> None:
    images = photos(200)
    changed = augment(images, randaugment_ops=1, randaugment_magnitude=20)
    change = getattr(tv, f"adjust_{name}")
    for factor in (1 - 0.9 * 20 / 30, 1 + 0.9 * 20 / 30):
        expected = change(images.permute(0, 3, 1, 2), factor).permute(0, 2, 3, 1)
        is_same = (changed == expected).flatten(1).all(dim=1)
        is_other = (expected != images).flatten(1).any(dim=1)
        assert (is_same & is_other).any(), factor


def test_a_stronger_randaugment_changes_more() -> None:
    images = photos(64)
    weak, strong = (
        (augment(images, randaugment_ops=2, randaugment_magnitude=m).int() - images.int()).abs()
        for m in (3, 30)
    )
    assert strong.float().mean() > 1.5 * weak.float().mean()


def test_blur_is_the_gaussian_of_torchvision_on_its_share_of_the_images() -> None:
    noise = torch.randint(0, 256, (40, 24, 24, 3), generator=torch.Generator().manual_seed(1))
    images = noise.to(torch.uint8)
    changed = augment(images, blur=0.5, blur_sigma=2.0)
    touched = (changed != images).flatten(1).any(dim=1)
    assert 10 <= touched.sum() <= 30
    deviations = [image.float().std() for image in changed[touched]]
    assert len({round(float(deviation), 1) for deviation in deviations}) > 5  # own widths
    # With one width allowed, every image has the kernel that torchvision would take.
    fixed = augment(images, blur=1.0, blur_sigma=0.1)
    theirs = tv.gaussian_blur(images.permute(0, 3, 1, 2), [3, 3], [0.1, 0.1])
    assert (fixed.permute(0, 3, 1, 2).int() - theirs.int()).abs().max() <= 1


def test_a_wide_blur_agrees_with_torchvision() -> None:
    pixels = photos(4).permute(0, 3, 1, 2)
    ours = blur(pixels, probability=1.0, max_sigma=1.5, generator=torch.Generator().manual_seed(3))
    sigmas = torch.rand(2, 4, generator=torch.Generator().manual_seed(3))[1] * 1.4 + 0.1
    for got, image, sigma in zip(ours, pixels, sigmas.tolist(), strict=True):
        theirs = tv.gaussian_blur(image, [11, 11], [sigma, sigma])
        assert (got.int() - theirs.int()).abs().max() <= 1


def test_erasing_fills_one_rectangle_with_one_colour() -> None:
    images = photos(64)
    changed = augment(images, erase=0.5, erase_area=0.25)
    touched = (changed != images).any(dim=3)
    share = touched.float().mean(dim=(1, 2))
    assert 20 <= (share > 0).sum() <= 44
    assert share.max() <= 0.3
    for mask, image in zip(touched, changed, strict=True):
        if mask.any():
            rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
            box = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert (box == box[0, 0]).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"randaugment_ops": 2, "rotate_degrees": 5},
        {"blur": 0.5},
        {"erase": 0.5},
        {"rotate_degrees": 20, "horizontal_flip": True, "hue": 0.1},
    ],
)
def test_a_seed_gives_the_same_pixels_whatever_was_drawn_before(settings: dict[str, Any]) -> None:
    first = augment(photos(), 5, **settings)
    torch.rand(7)
    augment(photos(), 6, **settings)
    assert torch.equal(first, augment(photos(), 5, **settings))
    assert not torch.equal(first, augment(photos(), 6, **settings))


def test_a_strip_and_a_single_image_are_augmented_too() -> None:
    everything: dict[str, Any] = {
        "randaugment_ops": 3,
        "rotate_degrees": 30,
        "blur": 1.0,
        "erase": 1.0,
    }
    for shape in ((1, 32, 32, 3), (3, 16, 64, 3)):
        images = torch.randint(0, 256, shape, dtype=torch.uint8)
        changed = augment(images, blur_sigma=10.0, **everything)
        assert changed.shape == shape
        assert changed.dtype == torch.uint8
