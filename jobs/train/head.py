"""Fit the head alone, on features that a frozen backbone gave once.

The features are standardised with the training split's mean and deviation, which makes one learning
rate right for any backbone; afterwards both are folded into the first linear layer, so the network
that is exported is no larger.

Shape legend: N images, C classes, D features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from jobs.train.borders import NotFiniteError
from jobs.train.config import TrainConfig
from jobs.train.features import Features
from jobs.train.history import EpochRecord, is_better, should_stop
from jobs.train.metrics import Evaluator
from jobs.train.network import Network
from jobs.train.objectives import build_objective
from jobs.train.optimisers import decayed_apart, make_optimiser
from jobs.train.schedules import build_schedule
from jobs.train.steps import Autocast, Skips, train_step
from models.errors import DataError

# A feature that never moves carries nothing; dividing by its deviation would only amplify noise: of
# 20 solar cells 193 of 2,272 features did not move, and those of other cells were 15,000 then.
MIN_STD = 1e-4
HEAD_BATCH = 256


@dataclass(frozen=True)
class Standardiser:
    """Mean and deviation per feature (D,)."""

    mean: Tensor
    std: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.std

    def fold(self, linear: nn.Linear, into: nn.Linear) -> None:
        """Write into `into` the layer that does on raw features what `linear` does on standardised
        ones.
        """
        with torch.no_grad():
            weight = linear.weight / self.std
            into.weight.copy_(weight)
            into.bias.copy_(linear.bias - weight @ self.mean)


def fit_head(
    network: Network,
    train: Features,
    validation: Features,
    config: TrainConfig,
    class_names: tuple[str, ...],
    on_epoch: Callable[[EpochRecord], None],
    on_step: Callable[[float], None] | None = None,
) -> list[EpochRecord]:
    """Fit the head of `network` in place to the best epoch by `config.monitor`, and return the
    history. `on_step` gets the loss of each step.

    Without validation images the last epoch is kept.
    """
    torch.manual_seed(config.seed)
    mean, std = train.moments()
    standard = Standardiser(mean, torch.where(std > MIN_STD, std, 1.0))
    hidden, last = copy.deepcopy(network.hidden).cpu(), copy.deepcopy(network.head).cpu()
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    model = nn.Sequential(nn.Dropout(config.network.dropout), hidden, last)
    draw = _drawer(train, len(class_names), config)
    steps = max(1, len(train) // HEAD_BATCH)
    groups = decayed_apart(model, config.optimiser.weight_decay)
    optimiser = make_optimiser(groups, config.optimiser)
    schedule = build_schedule(
        optimiser, config.optimiser, epochs=config.epochs, updates_per_epoch=steps
    )
    objective = build_objective(config, _class_totals(train, len(class_names)))
    autocast, skips = Autocast("cpu", enabled=False), Skips()
    history: list[EpochRecord] = []
    best: dict[str, Tensor] | None = None
    for epoch in range(config.epochs):
        model.train()
        with train.open_rows() as rows:
            losses: list[Tensor] = []
            for ids in draw(epoch).tensor_split(steps):
                loss = train_step(
                    model,
                    standard(rows(ids)),
                    train.labels[ids],
                    objective=objective,
                    optimiser=optimiser,
                    schedule=schedule,
                    clip_norm=config.optimiser.clip_norm,
                    autocast=autocast,
                    skips=skips,
                )
                losses.append(loss)
                if on_step is not None:
                    on_step(float(loss))
        check_finite(losses, skips, epoch, config)
        record = _record(model, standard, validation, class_names, epoch, losses)
        if best is None or is_better(record, history, config.monitor):
            best = copy.deepcopy(model.state_dict())
        history.append(record)
        on_epoch(record)
        if should_stop(history, config):
            break
    assert best is not None
    model.load_state_dict(best)
    first = cast(nn.Linear, hidden[0]) if isinstance(hidden, nn.Sequential) else last
    standard.fold(first, first)
    network.hidden.load_state_dict(hidden.state_dict())
    network.head.load_state_dict(last.state_dict())
    return history


def check_finite(losses: list[Tensor], skips: Skips, epoch: int, config: TrainConfig) -> None:
    """Raise `NotFiniteError` where the loss of a step of this epoch is no number any more, or no
    step of it has changed the weights.
    """
    for step, loss in enumerate(losses, start=1):
        if not torch.isfinite(loss):
            raise NotFiniteError(
                f"the loss is {float(loss)} in epoch {epoch + 1}, step {step}; lower optimiser.lr "
                f"(now {config.optimiser.lr})"
            )
    if skips.in_a_row >= len(losses):
        raise NotFiniteError(
            f"the gradient is no number in any step of epoch {epoch + 1}; lower optimiser.lr (now "
            f"{config.optimiser.lr})"
        )


def _record(
    model: nn.Module,
    standard: Standardiser,
    validation: Features,
    class_names: tuple[str, ...],
    epoch: int,
    losses: list[Tensor],
) -> EpochRecord:
    train_loss = float(torch.stack(losses).mean())
    if not len(validation):
        return EpochRecord(epoch, train_loss, None)
    model.eval()
    evaluator = Evaluator(class_names)
    with torch.inference_mode():
        for values, labels in validation.blocks():
            evaluator.update(torch.softmax(model(standard(values)), dim=1), labels)
    return EpochRecord(epoch, train_loss, evaluator.compute().flat())


def _drawer(train: Features, num_classes: int, config: TrainConfig) -> Callable[[int], Tensor]:
    """Return what gives the row order of an epoch: a permutation, or draws that even out the
    classes and follow the weights of the images.
    """
    labels, chances = train.labels, train.weights
    is_drawn = config.balance == "sampling" or bool((chances != 1).any())
    if not chances.sum() > 0:
        raise DataError("the weights of the training images must not all be 0")
    if config.balance == "sampling":
        per_class = torch.zeros(num_classes).index_add_(0, labels, chances)
        chances = chances / per_class.clamp_min(torch.finfo(torch.float32).tiny)[labels]

    def draw(epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(config.seed * 100_003 + epoch)
        if is_drawn:
            return _multinomial(chances, generator)
        return torch.randperm(len(labels), generator=generator)

    return draw


def _multinomial(chances: Tensor, generator: torch.Generator) -> Tensor:
    """Draw as many rows as there are; torch's own function takes 2^24 chances at most."""
    reach = chances.double().cumsum(0)
    ticks = torch.rand(len(chances), dtype=torch.float64, generator=generator) * reach[-1]
    return torch.searchsorted(reach, ticks, right=True).clamp(max=len(chances) - 1)


def _class_totals(train: Features, num_classes: int) -> list[float]:
    """Return per class how many images it has, counted by their weights."""
    totals: list[float] = (
        torch.zeros(num_classes).index_add_(0, train.labels, train.weights).tolist()
    )
    return totals
