"""Which rate each layer gets, which optimiser moves it, and how the rate moves over a run."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import OneCycleLR

from jobs.train.learning_config import OptimiserConfig
from jobs.train.network import Network, build_network
from jobs.train.optimisers import build_optimiser, decayed_apart, number_layers
from jobs.train.schedules import build_schedule, warmup_cosine
from tests.jobs.train.test_loop import make_network


def rates(network: Network, config: OptimiserConfig) -> dict[str, float]:
    """Return the learning rate of each parameter by its name."""
    by_id = {
        id(parameter): group["lr"]
        for group in build_optimiser(network, config).param_groups
        for parameter in group["params"]
    }
    return {name: by_id[id(parameter)] for name, parameter in network.named_parameters()}


def factors(updates: int, **settings: object) -> list[float]:
    """Return the rate of every update of a run of ten epochs, from a rate of 1."""
    config = OptimiserConfig.model_validate({"lr": 1.0, **settings})
    optimiser = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = build_schedule(optimiser, config, epochs=10, updates_per_epoch=updates // 10)
    found = []
    for _ in range(updates):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return found


def test_every_layer_is_slower_than_the_one_after_it() -> None:
    network = build_network("resnet10t", 2)
    config = OptimiserConfig(lr=1.0, backbone_lr_scale=0.5, layer_decay=0.7)
    found = rates(network, config)
    assert found["head.weight"] == 1.0
    assert found["backbone.layer4.0.conv1.weight"] == pytest.approx(0.5 * 0.7)
    assert found["backbone.layer3.0.conv1.weight"] == pytest.approx(0.5 * 0.7**2)
    assert found["backbone.conv1.0.weight"] == pytest.approx(0.5 * 0.7**5)


def test_without_layer_decay_the_backbone_has_one_rate() -> None:
    found = rates(build_network("resnet10t", 2), OptimiserConfig(lr=1.0, backbone_lr_scale=0.5))
    assert {rate for name, rate in found.items() if name.startswith("backbone.")} == {0.5}
    assert found["head.weight"] == found["head.bias"] == 1.0


def test_a_backbone_that_timm_does_not_know_is_layered_by_its_modules() -> None:
    network = make_network()
    assert number_layers(network.backbone) == {
        "0.weight": 0,
        "0.bias": 0,
        "1.weight": 1,
        "1.bias": 1,
    }
    found = rates(network, OptimiserConfig(lr=1.0, backbone_lr_scale=1.0, layer_decay=0.5))
    assert found["backbone.0.weight"] == 0.25
    assert found["backbone.1.weight"] == 0.5


def test_biases_and_norms_are_not_decayed() -> None:
    for config in (OptimiserConfig(layer_decay=0.7), OptimiserConfig()):
        optimiser = build_optimiser(build_network("resnet10t", 2), config)
        for group in optimiser.param_groups:
            is_flat = {parameter.ndim <= 1 for parameter in group["params"]}
            assert is_flat == {group["weight_decay"] == 0.0}
    head = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    decays = {group["weight_decay"]: len(group["params"]) for group in decayed_apart(head, 0.5)}
    assert decays == {0.5: 2, 0.0: 4}


@pytest.mark.parametrize("layer_decay", [1.0, 0.8])
def test_other_rates_give_the_same_groups(layer_decay: float) -> None:
    """A run that goes on loads the moments of each group, whatever the rates are now."""
    network = make_network()
    shapes = [
        [len(group["params"]) for group in build_optimiser(network, config).param_groups]
        for config in (
            OptimiserConfig(layer_decay=layer_decay, backbone_lr_scale=scale, weight_decay=decay)
            for scale in (0.1, 1.0)
            for decay in (0.0, 0.1)
        )
    ]
    assert all(shape == shapes[0] for shape in shapes)


def test_sgd_has_momentum_and_looks_ahead_unless_told_otherwise() -> None:
    optimiser = build_optimiser(make_network(), OptimiserConfig(kind="sgd"))
    assert isinstance(optimiser, SGD)
    assert optimiser.defaults["momentum"] == 0.9
    assert optimiser.defaults["nesterov"] is True
    plain = build_optimiser(make_network(), OptimiserConfig(kind="sgd", momentum=0.0))
    assert (plain.defaults["momentum"], plain.defaults["nesterov"]) == (0.0, False)
    assert isinstance(build_optimiser(make_network(), OptimiserConfig()), AdamW)


def test_cosine_rises_over_the_warm_up_and_ends_at_nothing() -> None:
    found = factors(100, warmup_epochs=2)
    assert found[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert found[60] == pytest.approx(0.5)
    assert found[-1] < 0.001
    assert warmup_cosine(20, 100)(10_000) == 0


def test_one_cycle_is_torchs() -> None:
    found = factors(100, schedule="one_cycle")
    optimiser = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = OneCycleLR(optimiser, max_lr=1.0, total_steps=100, cycle_momentum=False)
    expected = []
    for _ in range(100):
        expected.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        theirs.step()
    assert found == pytest.approx(expected, abs=1e-6)
    assert max(found) == 1.0


def test_the_rise_of_one_cycle_can_be_set() -> None:
    found = factors(100, schedule="one_cycle", warmup_epochs=1)
    assert found.index(max(found)) == 9


def test_constant_stays_after_its_warm_up() -> None:
    found = factors(100, schedule="constant", warmup_epochs=1)
    assert found[0] == pytest.approx(0.1)
    assert set(found[9:]) == {1.0}
    assert set(factors(100, schedule="constant", warmup_epochs=0)) == {1.0}


def test_an_open_warm_up_is_one_epoch_and_never_the_whole_run() -> None:
    assert factors(100).index(1.0) == 9
    optimiser = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = build_schedule(optimiser, OptimiserConfig(), epochs=1, updates_per_epoch=10)
    factor = schedule.lr_lambdas[0]
    assert factor(4) == 1.0
    assert math.isclose(factor(10), 0.0, abs_tol=1e-9)
