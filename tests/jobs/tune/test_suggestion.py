"""Where the curve of a range test says that learning is fastest, on curves with a known answer."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from jobs.train.checkpoints import Checkpoints
from jobs.train.config import TrainConfig
from jobs.train.loop import fit
from jobs.tune.config import LrTestConfig
from jobs.tune.lr_test import _Rise, _Watcher, at_once
from jobs.tune.suggestion import (
    BELOW_DIVERGENCE,
    STEEPEST,
    find_divergence,
    smooth,
    smooth_centred,
    suggest,
)
from models.storage import open_store
from tests.jobs.train.test_loop import CPU, NAMES, Shades, make_config, make_network

RATES = np.logspace(-6, 1, 211).tolist()  # 30 steps a decade


def curve(fall: float, rise: float, noise: float = 0.0) -> list[float]:
    """Return a loss that falls from 2 to 0.5 around one rate and rises without bound past another,
    both given as powers of ten.
    """
    powers = np.log10(np.array(RATES))
    falling = 0.5 + 1.5 / (1 + np.exp(6 * (powers - fall)))
    rising = np.exp(np.minimum(5 * (powers - rise), 20))
    noisy = falling + rising + np.random.default_rng(0).normal(0, noise, len(RATES))
    return [float(loss) for loss in noisy]


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_it_suggests_where_the_loss_falls_fastest(noise: float) -> None:
    found = suggest(RATES, curve(fall=-3, rise=0.5, noise=noise), smoothing=0.9, times=4)
    assert found.by == STEEPEST
    assert found.rate == found.steepest == pytest.approx(1e-3, rel=0.5)
    assert found.diverged is not None
    assert 1 < found.diverged <= 10


def test_the_range_test_trains_the_whole_network_on_whole_images_at_once() -> None:
    config = TrainConfig.model_validate(
        {
            "name": "caps",
            "data": {"uri": "."},
            "epochs": 9,
            "network": {"head_epochs": 2, "dropout": 0.4},
            "progressive": {"start_size": 128, "epochs": 4},
            "workers": {"num_workers": 2, "shard": True},
        }
    )
    found = at_once(config)
    assert (found.epochs, found.network.head_epochs, found.progressive) == (1, 0, None)
    assert (found.workers.num_workers, found.workers.shard) == (0, False)
    assert found.network.dropout == 0.4


@pytest.mark.parametrize("num_workers", [0, 4])
def test_a_loss_that_breaks_at_once_is_the_divergence_at_the_rate_of_its_step(
    tmp_path: Path, num_workers: int
) -> None:
    """The training raises instead of telling the loss, and the test knew of no divergence."""
    rise = _Rise(LrTestConfig(start=1e-4, end=1e-2, steps=20), 0.02)
    network = make_network()
    applied: list[float] = []

    def look(optimiser: torch.optim.Optimizer, *_: object) -> None:
        applied.append(max(group["lr"] for group in optimiser.param_groups))

    def spoil(count: int) -> None:
        if len(applied) == 3:
            with torch.no_grad():
                network.head.weight.fill_(float("inf"))

    with rise.setting():
        hook = register_optimizer_step_pre_hook(look)
        try:
            fit(
                network,
                Shades(),
                at_once(make_config(workers={"num_workers": num_workers})),
                class_names=NAMES,
                class_counts=(48, 48),
                checkpoints=Checkpoints(open_store(tmp_path)),
                place=CPU,
                watcher=_Watcher(rise, spoil),
            )
        finally:
            hook.remove()
    found = rise.result()
    assert len(found.rates) == len(found.losses) == 4
    assert math.isnan(found.losses[-1])
    assert found.suggestion.diverged == found.rates[-1]
    assert applied == pytest.approx(found.rates[:3]), "also where four workers would train"


def test_a_steepest_point_close_to_the_divergence_is_not_trusted() -> None:
    found = suggest(RATES, curve(fall=-2, rise=-1.5), smoothing=0.5, times=4)
    assert found.by == BELOW_DIVERGENCE
    assert found.diverged is not None
    assert found.steepest is not None
    assert found.steepest > found.diverged / 10
    assert found.rate == found.diverged / 10


def test_a_loss_that_never_falls_gives_no_suggestion() -> None:
    flat = [2.0 + 0.01 * (i % 3) for i in range(len(RATES))]
    found = suggest(RATES, flat, smoothing=0.9, times=4)
    assert found.rate is None
    assert found.by == "the loss never fell"


def test_a_test_that_ended_before_anything_broke_has_no_divergence() -> None:
    found = suggest(RATES[:120], curve(fall=-4, rise=0.5)[:120], smoothing=0.9, times=4)
    assert found.diverged is None
    assert found.by == STEEPEST


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_the_divergence(broken: float) -> None:
    losses = [*curve(fall=-3, rise=5)[:150], broken]
    assert find_divergence(losses, 0.9, 4) == 150
    found = suggest(RATES[:151], losses, 0.9, 4)
    assert found.diverged == pytest.approx(RATES[150])
    assert len(found.smoothed) == 150


def test_losing_all_that_was_learnt_is_a_divergence_below_the_given_factor() -> None:
    losses = [1.0] * 10 + [0.6] * 40 + [1.3] * 60  # little more than twice the lowest
    at = find_divergence(losses, 0.8, 4)
    assert at is not None
    assert 50 <= at < 60
    assert find_divergence(losses[:50], 0.8, 4) is None


def test_four_times_almost_nothing_is_no_divergence() -> None:
    learnt = [1.0] * 10 + [0.001] * 60
    assert find_divergence([*learnt, *[0.01] * 60], 0.5, 4) is None
    assert find_divergence([*learnt, *[0.7] * 60], 0.5, 4) is not None


def test_the_first_values_of_the_average_are_not_too_low() -> None:
    assert smooth([2.0, 2.0, 2.0], 0.98) == pytest.approx([2.0, 2.0, 2.0])


def test_the_centred_average_has_no_lag() -> None:
    line = [float(i) for i in range(101)]
    assert smooth_centred(line, 0.9)[50] == pytest.approx(50)
    assert smooth(line, 0.9)[50] == pytest.approx(50 - 9, abs=0.5)
