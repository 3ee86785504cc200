"""What a run changes from step to step: the network, its moving average, the optimiser and the
schedule, whole or in parts on several workers.

Its state is the same in both cases, so that a run may go on either way.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from jobs.train.borders import Place
from jobs.train.checkpoints import State
from jobs.train.config import TrainConfig
from jobs.train.network import Network
from jobs.train.optimisers import build_optimiser
from jobs.train.schedules import build_schedule
from jobs.train.sharding import load_whole, load_whole_optimiser, shard
from jobs.train.steps import build_average, num_updates


class Learner:
    """The moving parts of one run in one process; `steps` are those of a whole epoch."""

    def __init__(self, network: Network, config: TrainConfig, place: Place, steps: int) -> None:
        self._config, self._place, self._steps = config, place, steps
        # Alone there is nobody to split with, as in a group that has shrunk to one.
        self.is_sharded = config.workers.shard and place.world > 1
        if not self.is_sharded:
            # channels_last is how convolutions are fastest, on both kinds of device (1.8x on this
            # CPU). Parts have to be contiguous.
            network.to(place.device).to(memory_format=torch.channels_last)
        self.network = network
        self.average = build_average(network, config.optimiser.ema_decay)
        if self.is_sharded:
            for whole in dict.fromkeys((self.network, self.served)):
                shard(whole, place.device)
        self.optimiser = build_optimiser(network, config.optimiser)
        for group in self._groups:  # fewer workers than the rate is meant for
            group["lr"] *= place.world / max(place.world, config.workers.most)
        self.schedule = build_schedule(
            self.optimiser,
            config.optimiser,
            epochs=config.epochs,
            updates_per_epoch=num_updates(steps, config.accumulate),
        )

    @property
    def served(self) -> Network:
        """The network whose figures count: the average where there is one."""
        return self.network if self.average is None else cast(Network, self.average.module)

    def follow(self) -> None:
        """Have the average follow the network, after an update of it."""
        if self.average is not None:
            self.average.update_parameters(self.network)

    def state(self) -> State:
        """Return everything that going on from here needs; of what is in parts, the parts."""
        network = self.network.state_dict()
        return {
            "network": network,
            "served": network if self.average is None else self.served.state_dict(),
            "num_averaged": 0 if self.average is None else int(self.average.n_averaged),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def has_weights_of(self, state: State) -> bool:
        """Say whether a whole state has the weights of now, whatever else has changed since."""
        return all(
            bool(((own == other) | (own.isnan() & other.isnan())).all())
            for name, weights in self.network.named_parameters()
            for own, other in [(weights.detach().cpu(), state["network"][name])]
        )

    def load(self, state: State, updates: int | None) -> None:
        """Take over a whole state. Updates are counted anew, `updates` so far, where another number
        of workers did them; None: as they were.
        """
        load_whole(self.network, state["network"])
        if self.average is not None:
            load_whole(self.served, state["served"])
            self.average.n_averaged.fill_(state["num_averaged"])
        self._load_optimiser(state, updates)

    def _load_optimiser(self, state: State, updates: int | None) -> None:
        """Take over moments and steps, but rates and decay as they are configured now: lowering
        them is what helps a run whose loss broke.
        """
        wanted = [(group["initial_lr"], group["weight_decay"]) for group in self._groups]
        load_whole_optimiser(self.optimiser, state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        if updates is not None:
            self.schedule.last_epoch = updates
        self.schedule.base_lrs = [lr for lr, _ in wanted]
        factors = [factor(self.schedule.last_epoch) for factor in self.schedule.lr_lambdas]
        for group, (lr, decay), factor in zip(self._groups, wanted, factors, strict=True):
            group |= {"initial_lr": lr, "weight_decay": decay, "lr": lr * factor}

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return self.optimiser.param_groups
