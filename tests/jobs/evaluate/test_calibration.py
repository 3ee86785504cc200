"""A temperature makes an over-confident model as sure as it is right, and changes no answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from jobs.evaluate.calibration import (
    COLDEST,
    LEAST_IMAGES,
    Calibration,
    calibrate,
    calibration_error,
    fit_temperature,
    undo_temperature,
)
from tests.jobs.evaluate.answers import draw


def test_the_error_is_the_mean_distance_of_the_bins_by_their_images() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    is_right = np.array([True, True, True, False, True, True])
    found = calibrate(confidence, is_right, 10)
    # Too sure in one bin and not sure enough in the other: the two do not make up for each other.
    assert found.error == pytest.approx((4 * (0.95 - 0.75) + 2 * (1.0 - 0.55)) / 6)
    filled = [one for one in found.bins if one.num_images]
    assert [(one.low, one.num_images, one.accuracy) for one in filled] == [
        (0.5, 2, 1.0),
        (0.9, 4, 0.75),
    ]
    assert calibrate(np.array([1.0, 0.0]), np.array([True, False])).error == 0.0


def test_a_perfect_model_has_the_error_that_chance_gives_it_and_a_spoilt_one_more() -> None:
    def judged(count: int, factor: float) -> Calibration:
        logits, truth = draw(count, 4, seed=count)
        probabilities = softmax(logits * factor, axis=1)
        is_right = probabilities.argmax(axis=1) == truth
        return calibrate(probabilities.max(axis=1), is_right)

    for count in (300, 3000, 30_000):
        perfect = judged(count, 1.0)
        assert perfect.error < 1.3 * perfect.chance_bound
        assert 0 < perfect.chance < perfect.chance_bound
        spoilt = judged(count, 2.5)
        assert spoilt.error > spoilt.chance_bound
    assert judged(30_000, 1.0).chance < judged(300, 1.0).chance / 5


@pytest.mark.parametrize("factor", [3.0, 0.4])
def test_the_temperature_that_spoilt_a_model_is_found_again(factor: float) -> None:
    logits, truth = draw(5000, 5)
    fitted = fit_temperature(logits * factor, truth)
    assert fitted.value == pytest.approx(factor, rel=0.05)
    assert fitted.reason == ""
    # Judged on images that it was not fitted on.
    fresh, fresh_truth = draw(5000, 5, seed=9)
    before = calibration_error(softmax(fresh * factor, axis=1), fresh_truth)
    after = calibration_error(softmax(fresh * factor / fitted.value, axis=1), fresh_truth)
    assert before > 0.1
    assert after < 0.02
    assert fitted.error_before is not None
    assert fitted.error_after is not None
    assert fitted.error_after < fitted.error_before / 4
    same = softmax(fresh * factor / fitted.value, axis=1).argmax(axis=1)
    assert (same == fresh.argmax(axis=1)).all()


def test_without_enough_images_the_temperature_stays_1_and_says_why() -> None:
    logits, truth = draw(LEAST_IMAGES - 1)
    fitted = fit_temperature(logits * 3, truth)
    assert (fitted.value, fitted.num_images) == (1.0, LEAST_IMAGES - 1)
    assert "too few" in fitted.reason
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, np.int64)).value == 1.0


def test_a_fit_that_runs_away_leaves_1() -> None:
    logits, _ = draw(200)
    all_right = fit_temperature(logits, logits.argmax(axis=1))  # the colder, the better
    assert all_right.value == 1.0
    assert f"{COLDEST:g}" in all_right.reason
    assert all_right.error_after == all_right.error_before
    hot = fit_temperature(logits * 50, np.random.default_rng(0).integers(0, 3, 200))
    assert (hot.value, bool(hot.reason)) == (1.0, True)
    broken = fit_temperature(np.full((50, 3), np.nan), np.zeros(50, np.int64))
    assert (broken.value, "not finite" in broken.reason) == (1.0, True)


@pytest.mark.parametrize("margin", [2, 3, 5, 8, 12, 25])
def test_a_model_that_is_right_about_all_images_keeps_1_however_sure_it_is(margin: float) -> None:
    """At a low temperature its loss is exactly 0 in float64; the search stopped anywhere there."""
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, 200)
    margins = margin + np.abs(random.normal(0, 0.3, (200, 1)))
    fitted = fit_temperature(np.eye(3)[truth] * margins, truth)
    assert fitted.value == 1.0
    assert f"from {COLDEST:g}" in fitted.reason


def test_a_model_that_says_the_same_of_all_images_keeps_1() -> None:
    fitted = fit_temperature(np.zeros((200, 3)), np.arange(200) % 3)
    assert (fitted.value, fitted.reason) == (1.0, "1 is the best")


def test_a_temperature_can_be_undone_from_the_probabilities() -> None:
    logits, _ = draw(100)
    warm = softmax(logits / 1.7, axis=1).astype(np.float32)
    np.testing.assert_allclose(undo_temperature(warm, 1.7), softmax(logits, axis=1), atol=1e-4)
