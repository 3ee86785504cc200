"""Thresholds, slices and comparisons: what is suggested holds, and what is worse is found."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binom

from jobs.data.config import DataConfig
from jobs.evaluate.assess import Seen, _sources, find_slices
from jobs.evaluate.card import _calibration
from jobs.evaluate.compare import compare, mcnemar
from jobs.evaluate.intervals import wilson
from jobs.evaluate.slices import MOST_PER_TRAIT, by_name, by_value, cut, in_order
from jobs.evaluate.tables import suggestion_table
from jobs.evaluate.thresholds import LEAST_ANSWERS, STEPS, TARGETS, explore, suggest, threshold_text
from tests.jobs.evaluate.answers import draw, index_rows, judge, judge_with_a_map, make_report


def test_the_curve_counts_what_is_answered_at_each_threshold() -> None:
    judged = judge(*draw(300))
    curve = explore(judged, 0.95).curve
    for step in (0, 37, 80, 100):
        kept = judged.confidence >= step / STEPS
        assert curve.num_answered[step] == kept.sum()
        assert curve.num_right[step] == (kept & judged.is_best_right).sum()
    assert curve.coverage(0) == 1.0


def test_a_suggested_threshold_reaches_its_target_and_no_lower_one_does() -> None:
    judged = judge(*draw(2000))
    found = suggest(judged.confidence, judged.is_best_right, 0.9)
    assert found.threshold is not None

    def right_above(threshold: float) -> float:
        return float(judged.is_best_right[judged.confidence >= threshold].mean())

    assert right_above(found.threshold) == pytest.approx(found.reached)
    assert right_above(found.threshold) >= 0.9
    lower = np.unique(judged.confidence[judged.confidence < found.threshold])
    assert all(right_above(each) < 0.9 for each in lower)


@pytest.mark.parametrize(
    ("right", "wrong", "text"),
    [
        (0.99962, 0.9, "0.999"),
        (0.99962, 0.9995, "0.9996"),
        (0.91249, 0.91246, "0.91249"),
        (0.9, 0.8, "0.900"),
        (0.0004, 0.0003, "0.0004"),
    ],
)
def test_a_threshold_as_it_is_printed_lets_in_what_was_checked(
    right: float, wrong: float, text: str
) -> None:
    """With three digits it let in answers below the last one that was counted, or none at all."""
    confidence = np.array([right] * 12 + [wrong] * 12)
    found = suggest(confidence, np.arange(24) < 12, 0.95)
    assert found.threshold is not None
    assert threshold_text(found.threshold) == text
    assert wrong < float(text) <= right
    assert f">{text}<" in suggestion_table([found])


@pytest.mark.parametrize("target", [0.8, 0.9, 0.95])
def test_every_printed_threshold_gives_the_coverage_and_accuracy_beside_it(target: float) -> None:
    judged = judge(*draw(3000))
    found = suggest(judged.confidence, judged.is_best_right, target)
    assert found.threshold is not None
    kept = judged.confidence >= float(threshold_text(found.threshold))
    assert kept.mean() == pytest.approx(found.coverage, abs=1e-12)
    assert judged.is_best_right[kept].mean() == pytest.approx(found.reached, abs=1e-12)


def test_the_card_has_thresholds_with_all_their_digits() -> None:
    logits = np.zeros((40, 3))
    logits[:, 0] = np.where(np.arange(40) < 20, 8.6, 8.5)  # 0.99963 and 0.99959 sure
    judged = judge(logits, np.where(np.arange(40) < 20, 0, 1))
    report = make_report(judged)
    assert "threshold 0.9996, 50.0% of the images" in _calibration(report)


def test_a_target_out_of_reach_or_met_by_a_handful_is_not_suggested() -> None:
    wrong = np.zeros(50, dtype=bool)
    assert suggest(np.linspace(0.5, 1, 50), wrong, 0.95).threshold is None
    few = np.ones(LEAST_ANSWERS - 1, dtype=bool)
    assert suggest(np.full(len(few), 0.9), few, 0.95).threshold is None
    assert suggest(np.zeros(0), np.zeros(0, dtype=bool), 0.95).threshold is None


def test_images_of_one_confidence_stand_or_fall_together() -> None:
    confidence = np.array([0.9] * 12 + [0.8] * 12)
    is_right = np.array([True] * 12 + [True] * 6 + [False] * 6)
    found = suggest(confidence, is_right, 0.95)
    assert (found.threshold, found.coverage) == (0.9, 0.5)


def test_the_thresholds_of_all_labels_together_give_what_they_say() -> None:
    judged = judge(*draw(3000))
    found = explore(judged, 0.9)
    kept = np.zeros(len(judged), dtype=bool)
    for number, one in enumerate(found.labels):
        assert one.suggestion.threshold is not None
        kept |= (judged.best == number) & (judged.confidence >= one.suggestion.threshold)
    assert found.coverage == pytest.approx(kept.mean())
    assert found.accuracy == pytest.approx(judged.is_best_right[kept].mean())
    assert found.accuracy is not None
    assert found.accuracy >= 0.9


def test_no_threshold_answers_an_image_whose_label_is_hidden() -> None:
    """It said 100 % answered and 100 % right, and suggested a threshold for the hidden label."""
    truth = np.array([0] * 40 + [1] * 30 + [2] * 30)
    judged = judge_with_a_map(np.eye(3)[truth] * 5, truth, {"torn": {"status": "hidden"}})
    assert judged.num_hidden == judged.num_unknown == 30
    found = explore(judged, 0.95)
    assert found.curve.num_images == 100
    assert (found.curve.num_answered[0], found.curve.num_right[0]) == (70, 70)
    assert {one.coverage for one in found.suggestions} == {0.7}
    assert [one.name for one in found.labels] == ["good", "dented"]
    assert (found.coverage, found.accuracy) == (0.7, 1.0)


def test_where_all_labels_that_win_are_hidden_no_threshold_is_suggested() -> None:
    truth = np.full(40, 2)
    judged = judge_with_a_map(np.eye(3)[truth] * 5, truth, {"torn": {"status": "hidden"}})
    found = explore(judged, 0.95)
    assert found.curve.coverage(0) == found.coverage == 0.0
    assert [one.threshold for one in found.suggestions] == [None] * len(TARGETS)


def test_a_slice_that_is_worse_comes_first_and_a_tiny_one_does_not() -> None:
    random = np.random.default_rng(0)
    names = np.array(["line 1"] * 300 + ["line 2"] * 300 + ["new"] * 10)
    is_right = random.random(610) < np.where(names == "line 2", 0.6, 0.95)
    is_right[-10:] = [True] * 6 + [False] * 4
    found = in_order(by_name("source", names.tolist(), is_right))
    assert [one.name for one in found] == ["line 2", "new", "line 1"]
    assert [one.is_worse for one in found] == [True, False, False]
    assert sum(one.num_images for one in found) == 610


def test_dark_images_that_are_missed_are_found_by_their_brightness() -> None:
    logits, truth = draw(400)
    logits = np.eye(3)[truth] * 5
    brightness = np.linspace(0, 255, 400)
    dark = brightness < 60
    logits[dark] = np.eye(3)[(truth[dark] + 1) % 3] * 5
    found = in_order(by_value("brightness", brightness, judge(logits, truth).is_right, " of 255"))
    assert found[0].name.startswith("0 to ")
    assert found[0].accuracy.value is not None
    assert found[0].accuracy.value < 0.2
    assert not by_value("size", np.full(400, 40.0), judge(logits, truth).is_right)


def test_the_worst_of_many_lots_are_listed_however_small_they_are() -> None:
    """The largest 50 were listed, before anyone looked which are bad."""
    lots = np.arange(200).repeat(12)
    names = [f"lot {lot}" for lot in lots]
    is_right = np.arange(len(names)) % 12 > 0
    is_right[lots == 173] = False
    found = in_order(by_name("group", names, is_right))
    assert (len(found), found[0].name, found[0].is_worse) == (200, "lot 173", True)
    assert found[0].accuracy == wilson(0, 12)
    shown, left_off = cut(found)
    assert shown == found[:MOST_PER_TRAIT]
    assert left_off == ("of 200 slices by group the worst 50 are listed and 150 left off",)
    assert cut(found[:30]) == (found[:30], ())


def test_a_size_that_most_images_share_is_a_slice_by_itself() -> None:
    """The edges of the quarters fell together, and there was no slice at all."""
    is_right = np.arange(1000) % 10 > 0
    is_right[600:] = np.arange(400) % 2 == 0
    found = by_value("size", np.array([480.0] * 600 + [640.0] * 400), is_right, " pixels")
    told = [(one.name, one.num_images, one.is_worse) for one in found]
    assert told == [("480 pixels", 600, False), ("640 pixels", 400, True)]
    # Another few sizes above it, below it, and on both sides; too few images are no slice.
    above = np.array([480.0] * 850 + list(range(501, 651)))
    assert [one.name for one in by_value("size", above, is_right)] == ["480", "501 to 650"]
    below = np.array([480.0] * 600 + list(range(200, 400)) * 2)
    sizes = [(one.name, one.num_images) for one in by_value("size", below, is_right)]
    assert sizes == [("480", 600), ("200 to 324", 250), ("325 to 399", 150)]
    both = np.array([480.0] * 900 + [100, 101] * 30 + [700, 701] * 18 + [800, 801, 802, 803])
    sizes = [(one.name, one.num_images) for one in by_value("size", both, is_right)]
    assert sizes == [("480", 900), ("100 to 101", 60), ("700 to 803", 40)]
    few = np.array([480.0] * 995 + [640.0] * 5)
    assert not by_value("size", few, is_right)


def sources_of(paths: list[str], **data: object) -> list[str | None]:
    config = DataConfig.model_validate({"uri": "/set", **data})
    return _sources(index_rows(paths), config)


def test_slices_by_folder_leave_the_class_out_and_groups_are_used_where_there_are_any() -> None:
    judged = judge(*draw(40))
    paths = [
        f"/set/{'bad' if n % 4 > 1 else 'good'}/{'night' if n % 2 else 'day'}/{n}.jpg"
        for n in range(40)
    ]
    rows = index_rows(paths, group=[f"part {n % 2}" for n in range(40)])
    found = find_slices(
        judged, Seen(rows, DataConfig(uri="/set"), "test"), np.zeros(40, np.float32)
    )
    assert {(one.trait, one.name) for one in found} == {
        ("source", "day"),
        ("source", "night"),
        ("group", "part 0"),
        ("group", "part 1"),
    }


def test_the_folder_of_the_class_is_the_one_that_the_source_takes_it_from() -> None:
    """The last folder was left out, so that images were sliced by their class."""
    plain = ["/set/good/day/1.jpg", "/set/bad/day/line 2/2.jpg", "/set/bad/3.jpg"]
    assert sources_of(plain) == ["day", "day/line 2", ""]
    split = ["/set/test/good/1.jpg", "/set/test/good/monday/2.jpg", "/set/Val/bad/3.jpg"]
    assert sources_of(split) == ["test", "test/monday", "Val"]
    # A class that is called test, beside one that is no split; and folders that say no class.
    assert sources_of(["/set/test/day/1.jpg", "/set/good/day/2.jpg"]) == ["day", "day"]
    assert sources_of(["/set/test/1.jpg", "/set/test/day/2.jpg"]) == ["", "day"]
    assert sources_of(split, source="manifest") == ["test/good", "test/good/monday", "Val/bad"]


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 1), (3, 12), (40, 40)])
def test_mcnemars_test_is_the_exact_one(gained: int, lost: int) -> None:
    total = gained + lost
    tail = binom.cdf(min(gained, lost), total, 0.5)
    expected = min(1.0, 2 * tail) if total else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected)


def test_two_models_are_compared_image_by_image() -> None:
    logits, truth = draw(500, seed=2)
    noisy = logits + np.random.default_rng(3).normal(0, 4, logits.shape)
    one, other = judge(logits, truth), judge(noisy, truth)
    found = compare(one, other, name="caps/2", other_name="caps/1")
    mine, theirs = one.is_right, other.is_right
    assert found.gained == (mine & ~theirs).sum()
    assert found.lost == (~mine & theirs).sum()
    assert found.both_right + found.gained + found.lost + found.both_wrong == 500
    assert found.difference.value == pytest.approx(found.accuracy - found.accuracy_other)
    assert found.difference.low is not None
    assert found.difference.low > 0
    assert found.p_value < 0.001
    assert found.verdict.startswith("caps/2 is better")
    assert sum(each.gained for each in found.labels) == found.gained
    same = compare(one, one, name="caps/2", other_name="caps/1")
    assert (same.gained, same.lost, same.p_value) == (0, 0, 1.0)
    assert "same images" in same.verdict
    back = compare(other, one, name="caps/1", other_name="caps/2")
    assert (back.gained, back.lost) == (found.lost, found.gained)


def test_probabilities_of_the_helpers_are_probabilities() -> None:
    logits, truth = draw(4000)
    chance = softmax(logits, axis=1)[np.arange(4000), truth].mean()
    assert chance > 0.5  # else the other tests would prove nothing
