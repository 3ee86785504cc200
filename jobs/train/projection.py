"""Fit the projection of kind `embedding` alone, on features that a frozen backbone gave once.

As in `jobs.train.head` the features are standardised, and mean and deviation are folded into the
linear layer afterwards.

Shape legend: N images, F pooled features, D numbers in a vector, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from jobs.data.class_batches import grouped
from jobs.data.order import balanced, shuffled, weighted
from jobs.train.config import TrainConfig
from jobs.train.embedding_network import EmbeddingNetwork, project
from jobs.train.features import Features
from jobs.train.head import HEAD_BATCH, MIN_STD, Standardiser, check_finite
from jobs.train.history import EpochRecord, is_better, should_stop
from jobs.train.metric_learning import weigh_classes
from jobs.train.objectives import class_weights
from jobs.train.optimisers import decayed_apart, make_optimiser
from jobs.train.retrieval import Figures, retrieve_shared
from jobs.train.schedules import build_schedule
from jobs.train.steps import Autocast, Skips, train_step

COMPONENT_ROWS = 20_000  # more would not turn the components
CPU = torch.device("cpu")


class _Projection(nn.Module):
    """The trained parts of an `EmbeddingNetwork`, copied to the CPU, on standardised features."""

    def __init__(self, network: EmbeddingNetwork, standard: Standardiser) -> None:
        super().__init__()
        self.standard = standard
        self.dropout = copy.deepcopy(network.dropout)
        self.head = copy.deepcopy(network.head).cpu()
        self.norm = copy.deepcopy(network.norm).cpu()
        self.objective = copy.deepcopy(network.objective).cpu()

    def forward(self, features: Tensor) -> Tensor:
        """Return unit vectors (N, D) of features (N, F)."""
        return project(self.dropout(self.standard(features)), self.head, self.norm)

    def write_into(self, network: EmbeddingNetwork) -> None:
        """Give a network what was learnt, for features as they are."""
        self.standard.fold(self.head, self.head)
        network.head.load_state_dict(self.head.state_dict())
        network.norm.load_state_dict(self.norm.state_dict())
        network.objective.load_state_dict(self.objective.state_dict())


def fit_projection(
    network: EmbeddingNetwork,
    train: Features,
    validation: Features,
    config: TrainConfig,
    class_names: tuple[str, ...],
    on_epoch: Callable[[EpochRecord], None],
) -> list[EpochRecord]:
    """Fit projection and objective of `network` in place to the best epoch by `config.monitor`, and
    return the history.

    Without two validation images of one class the last epoch is kept. Raises `DataError` for class
    weights where a class has no images.
    """
    torch.manual_seed(config.seed)
    model = _Projection(network, _standard(train))
    _begin_with_components(model, train, _order(train, config, len(class_names), 0))
    seen = torch.zeros(len(class_names)).index_add_(0, train.labels, train.weights)
    weights = class_weights(seen.tolist()) if config.balance == "weights" else None
    objective = weigh_classes(model.objective, weights)
    steps = max(1, len(_order(train, config, len(class_names), 0)) // HEAD_BATCH)
    groups = decayed_apart(model, config.optimiser.weight_decay)
    optimiser = make_optimiser(groups, config.optimiser)
    schedule = build_schedule(
        optimiser, config.optimiser, epochs=config.epochs, updates_per_epoch=steps
    )
    autocast, skips = Autocast("cpu", enabled=False), Skips()
    history: list[EpochRecord] = []
    best: dict[str, Tensor] | None = None
    for epoch in range(config.epochs):
        model.train()
        order = _order(train, config, len(class_names), epoch)
        with train.open_rows() as rows:
            losses = [
                train_step(
                    model,
                    rows(ids),
                    train.labels[ids],
                    objective=objective,
                    optimiser=optimiser,
                    schedule=schedule,
                    clip_norm=config.optimiser.clip_norm,
                    autocast=autocast,
                    skips=skips,
                )
                for ids in _batches(order, steps, config.images_per_class or 1)
            ]
        check_finite(losses, skips, epoch, config)
        figures = _figures(model, validation)
        record = EpochRecord(epoch, float(torch.stack(losses).mean()), figures)
        if best is None or is_better(record, history, config.monitor):
            best = copy.deepcopy(model.state_dict())
        history.append(record)
        on_epoch(record)
        if should_stop(history, config):
            break
    assert best is not None
    model.load_state_dict(best)
    model.write_into(network)
    return history


def _standard(train: Features) -> Standardiser:
    """Return what centres features and scales all of them alike."""
    mean, std = train.moments()
    common = std.square().mean().sqrt().clamp_min(MIN_STD)
    return Standardiser(mean, common.expand_as(mean))


def _begin_with_components(model: _Projection, train: Features, order: Tensor) -> None:
    """Let the projection begin as the principal components of the features, where it is narrower
    than they are: what it then finds is about what the features themselves find.
    """
    if model.head.out_features >= train.num_features:
        return
    moments = torch.zeros(train.num_features, train.num_features, dtype=torch.float64)
    with train.open_rows() as rows:
        for ids in torch.split(order[:COMPONENT_ROWS], 1024):
            values = model.standard(rows(ids)).double()
            moments += values.T @ values
    _, components = torch.linalg.eigh(moments)  # the largest last
    with torch.no_grad():
        model.head.weight.copy_(components.T.flip(0)[: model.head.out_features])


def _figures(model: _Projection, validation: Features) -> Figures | None:
    model.eval()
    with torch.inference_mode():
        parts = ((model(values), labels) for values, labels in validation.blocks())
        return retrieve_shared(parts, model.head.out_features, CPU)


def _order(train: Features, config: TrainConfig, num_classes: int, epoch: int) -> Tensor:
    """Return the rows of an epoch, as a stream of images would have them."""
    labels = train.labels.numpy()
    weights = train.weights.double().numpy() if bool((train.weights != 1).any()) else None
    is_even = config.balance == "sampling"
    if (group := config.images_per_class) is not None:
        ids = grouped(labels, group, epoch, config.seed, is_even=is_even, weights=weights)
    elif is_even:
        ids = balanced(labels, [1.0] * num_classes, epoch, config.seed, weights)
    elif weights is not None:
        ids = weighted(weights, epoch, config.seed)
    else:
        ids = shuffled(len(labels), epoch, config.seed)
    return torch.from_numpy(np.ascontiguousarray(ids))


def _batches(order: Tensor, steps: int, group: int) -> list[Tensor]:
    """Cut an order into so many batches of about the same size, none within a group of rows."""
    return [part.reshape(-1) for part in order.view(-1, group).tensor_split(steps)]
