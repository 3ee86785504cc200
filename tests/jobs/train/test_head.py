"""Fitting the head on cached features, and folding the standardisation away."""

from __future__ import annotations

import pytest
import torch

from jobs.train.features import Features
from jobs.train.head import Standardiser, fit_head
from jobs.train.history import EpochRecord
from jobs.train.network import Network
from tests.jobs.train.test_loop import make_config, make_network

NAMES = ("a", "b")


def clouds(counts: tuple[int, int], seed: int) -> Features:
    """Two overlapping Gaussian clouds of 8 features with very different scales."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-3, 3, 8)
    labels = torch.cat([torch.full((n,), i) for i, n in enumerate(counts)])
    values = torch.randn(len(labels), 8, generator=generator) + 0.7 * (labels[:, None] * 2 - 1)
    return Features(values * scale + 5 * scale, labels)


def fit(balance: str = "none", counts: tuple[int, int] = (300, 300)) -> tuple[Network, float]:
    """Fit and return the network with its balanced accuracy on a balanced, unseen set."""
    network = make_network()
    config = make_config(
        epochs=30,
        balance=balance,
        optimiser={"lr": 0.01, "weight_decay": 0.01, "label_smoothing": 0.0},
        monitor="loss" if balance == "none" else "balanced_accuracy",
    )
    records: list[EpochRecord] = []
    history = fit_head(network, clouds(counts, 1), clouds(counts, 2), config, NAMES, records.append)
    assert history == records
    unseen = clouds((2000, 2000), 3)
    with torch.inference_mode():
        answers = network.head(unseen.values).argmax(dim=1)
    return network, float((answers == unseen.labels).float().mean())


def test_features_of_any_scale_are_separated() -> None:
    _, accuracy = fit()
    assert accuracy > 0.95  # the optimum of these clouds is 0.976


@pytest.mark.parametrize("balance", ["weights", "sampling"])
def test_balancing_helps_the_rare_class(balance: str) -> None:
    _, plain = fit(counts=(800, 16))
    _, balanced = fit(balance, counts=(800, 16))
    assert balanced > plain + 0.02


def test_the_folded_layer_does_what_standardising_first_did() -> None:
    torch.manual_seed(0)
    features = clouds((50, 50), 0).values
    standard = Standardiser(features.mean(dim=0), features.std(dim=0))
    linear, folded = torch.nn.Linear(8, 2), torch.nn.Linear(8, 2)
    standard.fold(linear, folded)
    torch.testing.assert_close(folded(features), linear(standard(features)), rtol=1e-4, atol=1e-4)
