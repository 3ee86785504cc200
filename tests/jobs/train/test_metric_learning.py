"""Objectives of kind `embedding`: what they ask for, and that their slopes are right."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from jobs.train.embedding_config import EmbeddingConfig
from jobs.train.metric_learning import (
    CosineSoftmax,
    SupervisedContrastive,
    build_metric_objective,
    weigh_classes,
)
from models.errors import ConfigError

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def vectors(spread: float, seed: int = 0) -> Tensor:
    """Return unit vectors of three classes, each around an axis of its own."""
    noise = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return functional.normalize(torch.eye(4, dtype=torch.float64)[LABELS] + spread * noise, dim=1)


def softmax_loss(config: EmbeddingConfig, given: Tensor) -> float:
    """Return the loss with class directions along the axes."""
    objective = CosineSoftmax(4, 3, config)
    objective.weight.data = torch.eye(4)[:3]
    return float(objective(given, LABELS).detach())


@pytest.mark.parametrize("objective", ["arcface", "cosface"])
def test_a_larger_margin_asks_for_more(objective: str) -> None:
    losses = [
        softmax_loss(
            EmbeddingConfig.model_validate({"objective": objective, "margin": m}), vectors(0.6)
        )
        for m in (0.0, 0.1, 0.3, 0.5)
    ]
    assert losses == sorted(losses)
    assert losses[-1] > 3 * losses[0]


def test_margins_are_those_of_the_papers() -> None:
    given = vectors(0.3)
    cosines = given[:, :3].float()
    own = cosines[torch.arange(6), LABELS]
    for objective, stricter in (
        ("arcface", torch.cos(torch.arccos(own) + 0.4)),
        ("cosface", own - 0.4),
    ):
        logits = cosines.clone()
        logits[torch.arange(6), LABELS] = stricter
        expected = float(functional.cross_entropy(20 * logits, LABELS))
        config = EmbeddingConfig.model_validate(
            {"objective": objective, "margin": 0.4, "scale": 20}
        )
        assert softmax_loss(config, given) == pytest.approx(expected, abs=1e-5)


def test_beyond_a_half_turn_a_vector_is_still_drawn_to_its_class() -> None:
    objective = CosineSoftmax(2, 2, EmbeddingConfig(margin=1.0))
    cosines = torch.cos(torch.linspace(0.01, math.pi - 0.01, 200)).view(-1, 1)
    falling = objective._stricter(cosines).view(-1).diff()
    assert bool((falling < 0).all())


@pytest.mark.parametrize("objective", ["arcface", "cosface", "supcon"])
def test_slopes_are_those_of_the_loss(objective: str) -> None:
    config = EmbeddingConfig.model_validate({"objective": objective, "size": 4})
    loss = build_metric_objective(config, 3)

    def of(values: Tensor) -> Tensor:
        result: Tensor = loss(functional.normalize(values, dim=1), LABELS)
        return result

    values = vectors(0.5).float().requires_grad_()
    of(values).backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    step = 1e-2 * torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        measured = float(of(values + step) - of(values - step))
    assert float((values.grad * step).sum() * 2) == pytest.approx(measured, rel=0.05)


def test_a_vector_on_its_class_has_a_finite_slope() -> None:
    objective = CosineSoftmax(4, 3, EmbeddingConfig())
    objective.weight.data = torch.eye(4)[:3]
    given = torch.eye(4)[LABELS].requires_grad_()
    objective(given, LABELS).backward()
    assert given.grad is not None
    assert bool(torch.isfinite(given.grad).all())


def test_contrastive_loss_prefers_classes_that_lie_together() -> None:
    objective = SupervisedContrastive(0.1)
    losses = [float(objective(vectors(spread), LABELS)) for spread in (0.0, 0.2, 1.0)]
    assert losses == sorted(losses)
    wrong = torch.tensor([0, 1, 2, 0, 1, 2])
    assert float(objective(vectors(0.0), wrong)) > losses[-1]


def test_contrastive_loss_is_equation_2_of_the_paper() -> None:
    given, total = vectors(0.5), 0.0
    for i in range(6):
        others = [a for a in range(6) if a != i]
        below = sum(math.exp(float(given[i] @ given[a]) / 0.2) for a in others)
        mine = [p for p in others if LABELS[p] == LABELS[i]]
        for p in mine:
            total -= math.log(math.exp(float(given[i] @ given[p]) / 0.2) / below) / len(mine)
    loss = float(SupervisedContrastive(0.2)(given, LABELS))
    assert loss == pytest.approx(total / 6, rel=1e-5)


def test_a_batch_without_a_pair_teaches_nothing_and_breaks_nothing() -> None:
    given = vectors(0.3)[::2].requires_grad_()
    loss = SupervisedContrastive(0.1)(given, LABELS[::2])
    loss.backward()
    assert float(loss.detach()) == 0
    assert given.grad is not None
    assert not bool(given.grad.any())


def test_class_weights_move_the_loss_towards_the_heavy_class() -> None:
    objective = CosineSoftmax(4, 3, EmbeddingConfig(margin=0.0))
    objective.weight.data = torch.eye(4)[:3]
    given = torch.eye(4)[torch.tensor([0, 0, 1, 1, 3, 3])]  # the last class is far from its own
    before = float(objective(given, LABELS).detach())
    weigh_classes(objective, torch.tensor([1.0, 1.0, 10.0]))
    assert float(objective(given, LABELS).detach()) > 2 * before


def test_a_weighed_loss_of_a_batch_is_the_mean_of_those_of_its_halves() -> None:
    objective = CosineSoftmax(4, 3, EmbeddingConfig())
    objective.weight.data = torch.eye(4)[:3]
    weigh_classes(objective, torch.tensor([1.0, 1.0, 10.0]))
    given = vectors(0.6)
    halves = [float(objective(given[k : k + 3], LABELS[k : k + 3]).detach()) for k in (0, 3)]
    assert sum(halves) / 2 == pytest.approx(float(objective(given, LABELS).detach()))


def test_mixed_images_are_refused_with_the_setting() -> None:
    shares = torch.full((6, 3), 1 / 3)
    with pytest.raises(ConfigError, match="turn mixing off in augment"):
        build_metric_objective(EmbeddingConfig(), 3)(vectors(0.1), shares)
