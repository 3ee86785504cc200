"""Losses against torch's own, against each other, and on shares of several classes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.train.objectives import Objective, build_objective, class_weights
from models.errors import DataError
from tests.jobs.train.test_loop import make_config

COUNTS = (60.0, 30.0, 10.0)


def examples() -> tuple[Tensor, Tensor, Tensor]:
    """Return logits (N, C), labels (N,) and soft targets (N, C)."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(12, 3, generator=generator)
    labels = torch.randint(0, 3, (12,), generator=generator)
    return logits, labels, torch.rand(12, 3, generator=generator).softmax(dim=1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs(smoothing: float) -> None:
    logits, labels, shares = examples()
    for targets in (labels, shares):
        ours = Objective(label_smoothing=smoothing)(logits, targets)
        theirs = nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, targets)
        torch.testing.assert_close(ours, theirs)


def test_class_weights_are_torchs_on_labels_and_their_mean_is_over_images() -> None:
    logits, labels, _ = examples()
    weights = class_weights(COUNTS)
    theirs = nn.CrossEntropyLoss(weights, reduction="sum")(logits, labels) / len(labels)
    torch.testing.assert_close(Objective(weights=weights)(logits, labels), theirs)
    ours = Objective(weights=weights, label_smoothing=0.1)
    halves = [ours(logits[part], labels[part]) for part in (slice(6), slice(6, 12))]
    torch.testing.assert_close(sum(halves) / 2, ours(logits, labels))


WAYS: dict[str, dict[str, object]] = {
    "weights": {"balance": "weights"},
    "logit-adjusted": {"loss": {"kind": "logit_adjusted"}},
    "focal with weights": {"balance": "weights", "loss": {"kind": "focal"}},
}


@pytest.mark.parametrize("way", WAYS)
def test_an_image_of_a_common_class_costs_least_when_it_is_called_that(way: str) -> None:
    """Also where labels are smoothed, which made the rare class of a hundred images the answer."""
    counts = (9900.0, 100.0)
    config = make_config(optimiser={"label_smoothing": 0.1}, **WAYS[way])
    objective = build_objective(config, counts)
    for label in (0, 1):
        doubts = torch.linspace(-8, 8, 161)  # of the answer: the other class against its own
        logits = torch.zeros(161, 1, 2)
        logits[:, 0, 1 - label] = doubts
        losses = torch.stack([objective(each, torch.tensor([label])) for each in logits])
        assert doubts[losses.argmin()] < -0.5


def test_a_mixed_image_costs_least_when_its_shares_are_the_answer() -> None:
    shares = torch.tensor([[0.7, 0.2, 0.1]])
    logits = shares.log().requires_grad_()
    Objective(weights=class_weights(COUNTS))(logits, shares).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(1, 3))


def test_labels_and_their_one_hot_shares_cost_the_same() -> None:
    logits, labels, _ = examples()
    one_hot = functional.one_hot(labels, 3).float()
    for kind in ("cross_entropy", "focal", "logit_adjusted"):
        objective = build_objective(make_config(loss={"kind": kind}), COUNTS)
        torch.testing.assert_close(objective(logits, labels), objective(logits, one_hot))


def test_focal_is_cross_entropy_for_gamma_0_and_forgives_what_is_nearly_right() -> None:
    logits, labels, _ = examples()
    plain = Objective()(logits, labels)
    zero = make_config(loss={"kind": "focal", "gamma": 0}, optimiser={"label_smoothing": 0})
    torch.testing.assert_close(build_objective(zero, COUNTS)(logits, labels), plain)
    focal = build_objective(
        make_config(loss={"kind": "focal"}, optimiser={"label_smoothing": 0}), COUNTS
    )
    assert focal.gamma == 2
    sure = torch.tensor([[4.0, 0.0, 0.0]])
    right, wrong = torch.tensor([0]), torch.tensor([1])
    assert focal(sure, right) < 0.01 * Objective()(sure, right)
    assert focal(sure, wrong) > 0.9 * Objective()(sure, wrong)
    p = sure.softmax(dim=1)[0, 1]
    torch.testing.assert_close(focal(sure, wrong), -((1 - p) ** 2) * p.log())


def test_focal_has_a_slope_where_the_answer_is_certain() -> None:
    logits = torch.tensor([[60.0, 0.0]], requires_grad=True)
    Objective(gamma=0.5)(logits, torch.tensor([0])).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_logit_adjusted_adds_the_logarithm_of_the_classes_shares() -> None:
    logits, labels, _ = examples()
    config = make_config(
        loss={"kind": "logit_adjusted", "tau": 0.5}, optimiser={"label_smoothing": 0}
    )
    prior = 0.5 * torch.tensor([0.6, 0.3, 0.1]).log()
    expected = functional.cross_entropy(logits + prior, labels)
    torch.testing.assert_close(build_objective(config, COUNTS)(logits, labels), expected)


@pytest.mark.parametrize("settings", [{"balance": "weights"}, {"loss": {"kind": "logit_adjusted"}}])
def test_a_class_without_images_cannot_be_balanced(settings: dict[str, object]) -> None:
    with pytest.raises(DataError, match="at least one image of every class"):
        build_objective(make_config(**settings), (5.0, 0.0))


def test_bfloat16_logits_cost_as_much_as_in_float32() -> None:
    logits, labels, _ = examples()
    half = logits.bfloat16()
    torch.testing.assert_close(Objective()(half, labels), Objective()(half.float(), labels))
