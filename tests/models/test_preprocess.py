"""What `prepare` gives for a photo of any size, for each resize rule."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from models.preprocess import PreprocessSpec, prepare, resize
from tests.models.test_decoders import encode


@settings(max_examples=60)
@given(
    height=st.integers(1, 700),
    width=st.integers(1, 700),
    rule=st.sampled_from(["stretch", "crop", "pad"]),
    interpolation=st.sampled_from(["bilinear", "area", "bicubic"]),
)
def test_any_size_becomes_the_models_size(
    height: int, width: int, rule: str, interpolation: str
) -> None:
    spec = PreprocessSpec.model_validate(
        {"height": 48, "width": 80, "resize": rule, "interpolation": interpolation}
    )
    result = resize(np.full((height, width, 3), 77, dtype=np.uint8), spec)
    assert result.shape == (48, 80, 3)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    assert set(np.unique(result)) <= {77, spec.pad_value}


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3, 65_000), (65_000, 2)])
@pytest.mark.parametrize("rule", ["stretch", "crop", "pad"])
def test_a_strip_takes_no_more_memory_than_a_photo(rule: str, size: tuple[int, int]) -> None:
    strip = np.full((*size, 3), 77, dtype=np.uint8)
    tracemalloc.start()
    result = resize(strip, PreprocessSpec.model_validate({"resize": rule}))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result.shape == (224, 224, 3)
    assert peak < 8 << 20


def test_pad_keeps_the_aspect_and_centres_the_photo() -> None:
    spec = PreprocessSpec(height=100, width=100, resize="pad")
    result = resize(np.full((50, 200, 3), 200, dtype=np.uint8), spec)
    is_photo = (result == 200).all(axis=(1, 2))
    assert np.flatnonzero(is_photo).tolist() == list(range(37, 62))


def test_crop_takes_the_centre() -> None:
    spec = PreprocessSpec(height=100, width=100, resize="crop", crop_ratio=0.5)
    photo = np.zeros((200, 200, 3), dtype=np.uint8)
    photo[50:150, 50:150] = 255
    assert resize(photo, spec).min() == 255


def test_fine_structure_of_a_large_photo_does_not_alias() -> None:
    stripes = np.zeros((1024, 1024, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    result = resize(stripes, PreprocessSpec(height=100, width=100, resize="stretch"))
    assert np.abs(result.astype(int) - 127).max() <= 2


def test_bilinear_stays_close_to_exact_area_averaging() -> None:
    rng = np.random.default_rng(0)
    photo = cv2.GaussianBlur(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8), (9, 9), 2)
    fast = resize(photo, PreprocessSpec(resize="stretch", interpolation="bilinear"))
    exact = resize(photo, PreprocessSpec(resize="stretch", interpolation="area"))
    assert np.abs(fast.astype(int) - exact.astype(int)).mean() < 2


def test_scaled_jpeg_decoding_gives_nearly_what_full_decoding_gives() -> None:
    gradient = np.zeros((1200, 1600, 3), dtype=np.uint8)
    gradient[..., 0] = np.linspace(0, 255, 1600)
    gradient[..., 1] = np.linspace(0, 255, 1200)[:, None]
    data = encode(Image.fromarray(gradient), "JPEG", quality=95)
    spec = PreprocessSpec(resize="stretch")
    assert np.abs(prepare(data, spec).astype(int) - resize(gradient, spec)).max() <= 6


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValidationError, match="resize"):
        PreprocessSpec.model_validate({"resize": "squash"})
