from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageEnhance

from jobs.data.audit.appearance import FINGERPRINT, fingerprint
from jobs.data.audit.lookalikes import (
    MOST_PARTNERS,
    WORD_BITS,
    WORDS,
    Limits,
    _near_keys,
    find_look_alikes,
    join_rows,
)
from tests.jobs.data.audit.planted import encoded, picture

Floats = npt.NDArray[np.float32]


def fingerprint_of(image: Image.Image) -> Floats:
    return fingerprint(np.asarray(image.convert("RGB")))


def fingerprints(count: int) -> Floats:
    return np.stack([fingerprint_of(picture(number)) for number in range(count)])


def pairs_of(values: Floats, limits: Limits | None = None) -> set[tuple[int, ...]]:
    found = find_look_alikes(values, limits or Limits())
    return {tuple(pair) for pair in found.pairs.rows.tolist()}


def test_a_fingerprint_outlives_light_size_and_compression() -> None:
    image = picture(1)
    changed = [
        ImageEnhance.Brightness(image).enhance(0.7),
        ImageEnhance.Contrast(image).enhance(0.8),
        image.resize((90, 90)),
        Image.open(io.BytesIO(encoded(image, 30))),
    ]
    for other in changed:
        assert fingerprint_of(image) @ fingerprint_of(other) > 0.99
    assert fingerprint_of(image) @ fingerprint_of(picture(2)) < 0.9


def test_a_picture_of_one_tone_has_none_and_is_like_no_other() -> None:
    plain = np.stack([fingerprint(np.full((40, 40, 3), grey, np.uint8)) for grey in (9, 9, 80)])
    assert not plain.any()
    assert pairs_of(plain) == set()


def test_nearly_equal_pictures_are_found_and_no_other() -> None:
    values = fingerprints(60)
    again = np.stack([fingerprint_of(picture(n).resize((100, 100))) for n in (3, 20, 41)])
    assert pairs_of(np.concatenate([values, again])) == {(3, 60), (20, 61), (41, 62)}


def test_a_set_of_two_is_compared_too() -> None:
    values = fingerprints(1)
    assert pairs_of(np.concatenate([values, values])) in ({(0, 1)}, set())
    assert pairs_of(values) == set()
    assert pairs_of(np.zeros((0, FINGERPRINT), np.float32)) == set()


def test_what_all_images_share_makes_no_pair() -> None:
    """A fixed camera: pictures agree in 99 % of what they show, and differ in the rest."""
    random = np.random.default_rng(1)
    scene = random.normal(size=FINGERPRINT)
    values = scene + 0.1 * random.normal(size=(300, FINGERPRINT))
    values = np.concatenate([values, values[:3] + 0.005 * random.normal(size=(3, FINGERPRINT))])
    values = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    assert (values @ values.T).min() > 0.95
    assert pairs_of(values) == {(0, 300), (1, 301), (2, 302)}


def test_a_crowd_is_compared_once_more_among_itself() -> None:
    random = np.random.default_rng(2)
    others = random.normal(size=(200, FINGERPRINT))
    crowd = random.normal(size=FINGERPRINT) + 0.02 * random.normal(size=(50, FINGERPRINT))
    twin = crowd[:1] + 0.0005 * random.normal(size=(1, FINGERPRINT))
    values = np.concatenate([others, crowd, twin])
    values = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    found = find_look_alikes(values, Limits())
    assert [len(rows) for rows in found.crowds] == [51]
    assert {tuple(pair) for pair in found.pairs.rows.tolist()} == {(200, 250)}


@pytest.mark.parametrize(
    "count", [20_000, pytest.param(80_000, marks=pytest.mark.slow)], ids=["20k", "80k"]
)
def test_one_of_six_hundred_pairs_is_compared_and_no_look_alike_missed(count: int) -> None:
    random = np.random.default_rng(3)
    values = random.normal(size=(count, FINGERPRINT)).astype(np.float32)
    values[-100:] = values[:100] + 0.02 * values[100:200]
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    found = find_look_alikes(values, Limits())
    wanted = {(n, count - 100 + n) for n in range(100)}
    assert len(wanted & {tuple(pair) for pair in found.pairs.rows.tolist()}) >= 99
    # Four words of 16 bits, of which none or one may differ: 4 x 17 / 65,536, and as much again
    # for words that occur more often than others.
    looked_at = num_looked_at(values)
    assert 0 < looked_at < 2 * 4 * 17 / 65_536 * count * (count - 1) / 2


def test_of_a_crowd_each_image_is_compared_with_some() -> None:
    values = np.ones((3000, FINGERPRINT), np.float32)
    assert num_looked_at(values) <= 4 * 3000 * MOST_PARTNERS


def num_looked_at(values: Floats) -> int:
    """Return how many pairs are compared, by their signs at least."""
    directions = np.random.default_rng(0).normal(size=(FINGERPRINT, WORDS * WORD_BITS))
    signs = (values @ directions > 0).reshape(len(values), WORDS, WORD_BITS)
    total = 0
    for keys in (signs @ (1 << np.arange(WORD_BITS))).T:
        order = np.argsort(keys)
        total += sum(len(block) for block in _near_keys(keys[order], order))
    return total


def test_rows_joined_by_pairs_are_one_group() -> None:
    groups = join_rows(np.array([[0, 2], [2, 4]]), 5)
    assert groups[0] == groups[2] == groups[4]
    assert len(set(groups.tolist())) == 3
