"""MixUp and CutMix: pixels and labels change by the same share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from jobs.data.transforms import AugmentConfig
from jobs.train.mixing import mix


def flat_images(count: int = 64) -> tuple[Tensor, Tensor]:
    """Return images of one grey each, 3 for class 0, 103 for 1 and 203 for 2; and their labels."""
    labels = torch.arange(count) % 3
    images = (labels * 100 + 3).view(-1, 1, 1, 1).expand(-1, 20, 30, 3)
    return images.to(torch.uint8).contiguous(), labels


def mixed(seed: int = 0, **settings: float) -> tuple[Tensor, Tensor]:
    """Mix the flat images."""
    config = AugmentConfig.model_validate(settings)
    return mix(*flat_images(), config, 3, torch.Generator().manual_seed(seed))


def test_mixup_blends_pixels_by_the_shares_of_the_labels() -> None:
    images, shares = mixed(mixup_alpha=1.0)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(64))
    expected = (shares * torch.tensor([3.0, 103.0, 203.0])).sum(dim=1)
    assert (images.float().mean(dim=(1, 2, 3)) - expected).abs().max() <= 0.51
    assert (images.flatten(1).amax(dim=1) == images.flatten(1).amin(dim=1)).all()
    assert ((shares.amax(dim=1) > 0.02) & (shares.amax(dim=1) < 0.98)).sum() > 20


def test_cutmix_copies_a_rectangle_as_large_as_the_share_of_its_label() -> None:
    images, shares = mixed(cutmix_alpha=1.0)
    greys = torch.tensor([3, 103, 203], dtype=torch.uint8)
    found = (images[..., 0, None] == greys).float().mean(dim=(1, 2))
    torch.testing.assert_close(found, shares)
    assert (shares.amax(dim=1) < 0.98).sum() > 20
    cut = images[shares.amax(dim=1) < 0.9][0, ..., 0]
    part = cut != cut[0, 0] if (cut == cut[0, 0]).float().mean() > 0.5 else cut == cut[0, 0]
    rows, columns = part.any(dim=1).nonzero(), part.any(dim=0).nonzero()
    assert part[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()


def test_with_both_an_image_gets_one_of_them() -> None:
    images, shares = mixed(mixup_alpha=1.0, cutmix_alpha=1.0)
    greys = {3, 103, 203}
    is_blended = torch.tensor([not set(image.flatten().tolist()) <= greys for image in images])
    is_mixed = shares.amax(dim=1) < 0.99
    assert 10 < (is_mixed & is_blended).sum() < 50
    assert 5 < (is_mixed & ~is_blended).sum() < 50


@pytest.mark.parametrize("settings", [{"mixup_alpha": 1.0}, {"cutmix_alpha": 1.0}])
def test_only_the_share_that_is_asked_for_is_mixed(settings: dict[str, Any]) -> None:
    images, shares = mixed(mix_probability=0.25, **settings)
    before, labels = flat_images()
    is_left = shares[torch.arange(64), labels] == 1
    assert 36 < is_left.sum() < 62
    assert torch.equal(images[is_left], before[is_left])


def test_a_seed_mixes_the_same_again() -> None:
    for one, other in zip(mixed(3, mixup_alpha=0.4), mixed(3, mixup_alpha=0.4), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(mixed(3, mixup_alpha=0.4)[0], mixed(4, mixup_alpha=0.4)[0])


def test_a_small_alpha_leaves_images_nearly_whole() -> None:
    weak, strong = (mixed(mixup_alpha=alpha)[1].amax(dim=1).mean() for alpha in (0.05, 5.0))
    assert weak > strong + 0.1
