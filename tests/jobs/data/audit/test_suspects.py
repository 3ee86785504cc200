from __future__ import annotations

import inspect
import re

import numpy as np
import numpy.typing as npt

from jobs.data.audit import suspects
from jobs.data.audit.config import AuditConfig
from jobs.data.audit.findings import KINDS
from jobs.data.audit.suspects import calibrated, main_directions, out_of_sample

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


def clusters(count: int, classes: int, spread: float, seed: int = 0) -> tuple[Floats, Integers]:
    """Return embeddings around a centre per class, and the classes."""
    random = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % classes
    centres = random.normal(size=(classes, 40))
    values = centres[labels] + spread * random.normal(size=(count, 40))
    return values.astype(np.float32), labels


def test_no_finding_of_a_model_is_left_out_of_those_it_is_asked_for() -> None:
    """Else skipping the others would silently skip it, too."""
    named = set(re.findall(r'"(\w+)"', inspect.getsource(suspects)))
    assert named & set(KINDS) == suspects.FINDINGS


def test_wrong_labels_get_low_probabilities() -> None:
    values, truth = clusters(600, 3, 0.8)
    wrong = np.arange(0, 600, 20)
    labels = truth.copy()
    labels[wrong] = (truth[wrong] + 1) % 3
    probabilities = out_of_sample(values, labels, np.arange(600), AuditConfig())
    given = probabilities[np.arange(600), labels]
    lowest = set(np.argsort(given)[: len(wrong)].tolist())
    assert len(lowest & set(wrong.tolist())) >= 0.95 * len(wrong)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-9)


def test_an_image_is_never_judged_by_its_copy() -> None:
    """Labels drawn by lot: a model that sees the copy of an image knows its label, else nothing."""
    random = np.random.default_rng(1)
    values = random.normal(size=(200, 120)).astype(np.float32)
    labels = random.integers(0, 2, 200)
    twice, both = np.concatenate([values, values]), np.concatenate([labels, labels])
    pairs = np.concatenate([np.arange(200), np.arange(200)])
    config = AuditConfig(fit_strength=1000)
    apart = out_of_sample(twice, both, np.arange(400), config).argmax(axis=1) == both
    together = out_of_sample(twice, both, pairs, config).argmax(axis=1) == both
    assert apart.mean() > 0.7
    assert together.mean() < 0.6


def test_probabilities_are_calibrated() -> None:
    random = np.random.default_rng(2)
    truth = random.normal(size=(4000, 3))
    chances = np.exp(truth) / np.exp(truth).sum(axis=1, keepdims=True)
    labels = np.array([random.choice(3, p=row) for row in chances])
    np.testing.assert_allclose(calibrated(5 * truth, labels), chances, atol=0.05)


def test_directions_are_of_unit_variance_and_few() -> None:
    values, _ = clusters(200, 2, 1.0)
    found = main_directions(values)
    assert found.shape == (200, 40)
    np.testing.assert_allclose(found.std(axis=0), 1, atol=0.1)
