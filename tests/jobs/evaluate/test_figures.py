"""The figures agree with scikit-learn's, and their intervals hold what they say."""

from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn import metrics

from jobs.evaluate.figures import average_precision, compute_figures
from jobs.evaluate.intervals import wilson
from jobs.evaluate.judged import Judged
from models.label_map import UNKNOWN, LabelMap, Reading, identity_map
from models.labels import OutputClass
from tests.jobs.evaluate.answers import draw, judge


def test_every_figure_is_that_of_scikit_learn() -> None:
    judged = judge(*draw(400, 5))
    figures = compute_figures(judged, resamples=100)
    truth, said = judged.truth, judged.answers
    precision, recall, f1, support = metrics.precision_recall_fscore_support(truth, said)
    for k, one in enumerate(figures.labels):
        expected = metrics.average_precision_score(truth == k, judged.probabilities[:, k])
        assert one.precision.value == pytest.approx(precision[k])
        assert one.recall.value == pytest.approx(recall[k])
        assert one.f1.value == pytest.approx(f1[k])
        assert one.average_precision.value == pytest.approx(expected)
        assert one.num_images == support[k]
    assert figures.accuracy.value == pytest.approx(metrics.accuracy_score(truth, said))
    assert figures.balanced_accuracy.value == pytest.approx(
        metrics.balanced_accuracy_score(truth, said)
    )
    assert figures.macro_f1.value == pytest.approx(f1.mean())
    assert figures.weighted_f1.value == pytest.approx(
        metrics.f1_score(truth, said, average="weighted")
    )
    assert figures.loss == pytest.approx(metrics.log_loss(truth, judged.probabilities), rel=1e-4)
    assert (figures.confusion[:, :5] == metrics.confusion_matrix(truth, said)).all()


def test_average_precision_counts_scores_that_are_alike_together() -> None:
    random = np.random.default_rng(1)
    scores = random.integers(0, 5, 200) / 4.0
    is_positive = random.random(200) < 0.3
    expected = metrics.average_precision_score(is_positive, scores)
    assert average_precision(scores, is_positive) == pytest.approx(expected)


def test_intervals_are_those_of_drawing_the_images_one_by_one() -> None:
    judged = judge(*draw(300, 3, seed=4))
    figures = compute_figures(judged, resamples=2000, seed=1)
    random = np.random.default_rng(2)
    found: dict[str, list[float]] = {"accuracy": [], "f1": [], "ap": []}
    for _ in range(300):
        drawn = random.integers(0, len(judged), len(judged))
        truth, said = judged.truth[drawn], judged.answers[drawn]
        found["accuracy"].append(float((truth == said).mean()))
        found["f1"].append(metrics.f1_score(truth == 1, said == 1))
        found["ap"].append(
            metrics.average_precision_score(truth == 1, judged.probabilities[drawn, 1])
        )
    one = figures.labels[1]
    for name, estimate in (
        ("accuracy", figures.accuracy),
        ("f1", one.f1),
        ("ap", one.average_precision),
    ):
        low, high = np.quantile(found[name], [0.025, 0.975])
        assert estimate.low == pytest.approx(low, abs=0.025), name
        assert estimate.high == pytest.approx(high, abs=0.025), name


def test_the_same_seed_gives_the_same_intervals_and_another_one_others() -> None:
    judged = judge(*draw(100))
    first, again, other = (compute_figures(judged, resamples=200, seed=s) for s in (3, 3, 4))
    assert first.labels == again.labels
    assert first.labels != other.labels


def test_five_of_five_are_not_certain() -> None:
    logits = np.eye(3).repeat(5, axis=0) * 9
    figures = compute_figures(judge(logits, np.arange(3).repeat(5)), resamples=200)
    for one in (figures.accuracy, figures.balanced_accuracy, figures.macro_f1):
        assert one.value == 1.0
        assert one.low is not None
        assert one.low < 0.85
    recall = figures.labels[0].recall
    assert recall.low == pytest.approx(0.5655, abs=1e-4)  # Wilson's, of 5 in 5
    assert (wilson(0, 4).low, wilson(4, 4).high) == (0.0, 1.0)


def test_a_label_without_images_has_no_recall_and_leaves_the_means_alone() -> None:
    logits, truth = draw(200, 3)
    wider = np.concatenate([logits, np.full((200, 1), -20.0)], axis=1)
    narrow, wide = (compute_figures(judge(each, truth), resamples=100) for each in (logits, wider))
    assert wide.labels[3].recall.value is None
    assert wide.labels[3].average_precision.value is None
    assert wide.balanced_accuracy.value == narrow.balanced_accuracy.value
    assert wide.macro_f1.value == pytest.approx(narrow.macro_f1.value)


def test_ten_thousand_images_take_seconds() -> None:
    judged = judge(*draw(10_000, 10))
    started = time.perf_counter()
    figures = compute_figures(judged, resamples=100)
    assert time.perf_counter() - started < 10
    assert figures.num_ranking_resamples == 100


def test_a_label_map_merges_probabilities_and_its_unknown_is_not_right() -> None:
    classes = [OutputClass(id=each, name=each) for each in ("a", "b", "c")]
    first = identity_map(classes)
    a, b, c = first.labels
    merged = LabelMap(
        fingerprint=first.fingerprint,
        labels=(
            a.model_copy(update={"outputs": ("a", "b")}),
            b.model_copy(update={"status": "retired", "merged_into": "a"}),
            c.model_copy(update={"threshold": 0.9}),
        ),
    )
    rows = np.array([[0.3, 0.3, 0.4], [0.1, 0.1, 0.8], [0.0, 0.05, 0.95]], np.float32)
    judged = Judged.by_reading(rows, np.array([0, 1, 1]), Reading(merged, classes, 2))
    assert judged.labels == ("a", "c")
    assert judged.answers.tolist() == [0, UNKNOWN, 1]
    np.testing.assert_allclose(judged.probabilities[0], [0.6, 0.4], atol=1e-6)
    figures = compute_figures(judged, resamples=100)
    assert figures.accuracy.value == pytest.approx(2 / 3)
    assert figures.confusion.tolist() == [[1, 0, 0], [0, 1, 1]]


def test_none_of_five_is_not_certain_either() -> None:
    logits = np.eye(3)[[1, 2, 0]].repeat(5, axis=0) * 9  # always the next one
    figures = compute_figures(judge(logits, np.arange(3).repeat(5)), resamples=200)
    label = figures.labels[0]
    for one in (figures.balanced_accuracy, figures.macro_f1, figures.weighted_f1, label.f1):
        assert one.value == one.low == 0.0
        assert one.high is not None
        assert 0.2 < one.high < 0.6


def test_an_average_precision_of_1_is_as_sure_as_its_positives_are_many() -> None:
    few, many = (
        compute_figures(judge(np.eye(3).repeat(n, axis=0) * 9, np.arange(3).repeat(n)))
        for n in (2, 200)
    )
    for figures, positives in ((few, 2), (many, 200)):
        found = figures.labels[0].average_precision
        assert (found.value, found.high) == (1.0, 1.0)
        assert found.low == wilson(positives, positives).low
