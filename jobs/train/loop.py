"""Fine-tune a whole network, epoch by epoch. Plain torch: in one process, or in each of many that
torch has connected.

It takes its batches from whoever gives them and writes checkpoints through
`jobs.train.checkpoints`; it starts no workers and knows no Ray. A run that finds a checkpoint of
its own goes on after the last finished epoch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from jobs.data.streams import Batch
from jobs.data.transforms import Augmentation
from jobs.train.checkpoints import Checkpoints, State
from jobs.train.config import TrainConfig
from jobs.train.embedding_network import EmbeddingNetwork
from jobs.train.history import EpochRecord, is_better, score, should_stop
from jobs.train.metric_learning import weigh_classes
from jobs.train.metrics import Evaluator
from jobs.train.network import Network
from jobs.train.objectives import build_objective, class_weights
from jobs.train.retrieval import retrieve_shared
from jobs.train.steps import (
    Autocast,
    build_average,
    build_optimiser,
    build_schedule,
    eval_step,
    train_step,
)
from models.errors import DataError, SightlineError

logger = logging.getLogger(__name__)


class Batches(Protocol):
    """Where a worker's share of the images comes from."""

    def num_train_batches(self) -> int:
        """Return how many batches an epoch has for this worker; the same for all."""
        ...

    def train(self, epoch: int) -> Iterator[Batch]:
        """Yield the shuffled batches of one epoch."""
        ...

    def validation(self) -> Iterator[Batch]:
        """Yield this worker's validation images, each exactly once."""
        ...


class Watcher(Protocol):
    """What wants to know how a run goes on."""

    def step(self, num_images: int, loss: float) -> None:
        """Called after each step of this worker."""
        ...

    def epoch(self, record: EpochRecord) -> None:
        """Called after each epoch, on every worker, with the figures of all."""
        ...


@dataclass(frozen=True)
class Place:
    """Where this process stands among the workers, and what it computes on."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this worker writes the checkpoints."""
        return self.rank == 0


class NotFiniteError(SightlineError):
    """The loss became NaN or infinite."""

    code = "loss_not_finite"


def fit(
    network: Network,
    batches: Batches,
    config: TrainConfig,
    *,
    class_names: tuple[str, ...],
    class_counts: Sequence[float],
    checkpoints: Checkpoints,
    place: Place,
    watcher: Watcher,
) -> list[EpochRecord]:
    """Train, and return the history; on the first worker `network` is then at its best epoch by
    `config.monitor`.

    Raises `DataError` if there is not one batch to train on, and `NotFiniteError` if the loss is no
    longer a number.
    """
    run = _Run(network, batches, config, class_counts, place)
    history = run.resume(checkpoints.load("last"))
    if len(history) >= config.epochs:
        logger.warning(
            "this run has its %d epochs already, so nothing is trained; raise epochs to go on, or "
            "give another `run` to begin anew",
            len(history),
        )
    for epoch in range(len(history), config.epochs):
        if should_stop(history, config.monitor, config.early_stop_epochs):
            break
        started = time.perf_counter()
        loss, num_images, waited = run.train_epoch(epoch, watcher)
        seconds = time.perf_counter() - started
        record = EpochRecord(
            epoch,
            loss,
            run.evaluate(class_names),
            images_per_second=num_images * place.world / seconds,
            waiting_share=waited / seconds,
        )
        better = is_better(record, history, config.monitor)
        history.append(record)
        if place.is_first:
            checkpoints.save(
                run.state(history),
                next_epoch=epoch + 1,
                score=score(record, config.monitor),
                is_best=better,
            )
        watcher.epoch(record)
    if place.is_first:  # the others are done, and the first may still be writing
        best = checkpoints.load("best")
        assert best is not None
        network.load_state_dict(best["served"])
    return history


class _Run:
    """The moving parts of one run in one process."""

    def __init__(
        self,
        network: Network,
        batches: Batches,
        config: TrainConfig,
        class_counts: Sequence[float],
        place: Place,
    ) -> None:
        torch.manual_seed(config.seed + place.rank)
        self.config, self.batches, self.place = config, batches, place
        self.network = network.to(place.device)
        # channels_last is how convolutions are fastest, on both kinds of device (1.8x on this CPU).
        self.network.to(memory_format=torch.channels_last)
        self.model: nn.Module = (
            DistributedDataParallel(self.network) if place.world > 1 else self.network
        )
        steps = batches.num_train_batches()
        if steps < 1:
            raise DataError("there is not one full batch of training images; lower batch_size")
        self.optimiser = build_optimiser(self.network, config.optimiser)
        self.schedule = build_schedule(
            self.optimiser,
            warmup_steps=round(config.optimiser.warmup_epochs * steps),
            total_steps=config.epochs * steps,
        )
        weights = class_weights(class_counts) if config.balance == "weights" else None
        self.objective = (
            weigh_classes(self.network.objective, weights)
            if isinstance(self.network, EmbeddingNetwork)
            else build_objective(config.optimiser.label_smoothing, weights, place.device)
        )
        self.average: AveragedModel | None = build_average(self.network, config.optimiser.ema_decay)
        self.augmentation = Augmentation(config.augment)
        half = config.precision == "bf16" or (
            config.precision == "auto" and place.device.type == "cuda"
        )
        self.autocast = Autocast(place.device.type, half)

    def train_epoch(self, epoch: int, watcher: Watcher) -> tuple[float, int, float]:
        """Run one epoch; return the mean loss, this worker's images, and the seconds spent waiting
        for data.
        """
        self.model.train()
        generator = torch.Generator().manual_seed(
            self.config.seed + 7919 * epoch + 104729 * self.place.rank
        )
        total, steps, num_images = 0.0, 0, 0
        source = _Timed(self.batches.train(epoch))
        for batch in source:
            images, labels = to_device(batch, self.place.device)
            loss = float(
                train_step(
                    self.model,
                    self.augmentation(images, generator),
                    labels,
                    objective=self.objective,
                    optimiser=self.optimiser,
                    schedule=self.schedule,
                    clip_norm=self.config.optimiser.clip_norm,
                    autocast=self.autocast,
                )
            )
            if loss != loss or loss in (float("inf"), float("-inf")):
                raise NotFiniteError(
                    f"the loss is {loss} in epoch {epoch + 1}, step {steps + 1}; lower "
                    "optimiser.lr (now "
                    f"{self.config.optimiser.lr}) or set precision: fp32, and run again with the "
                    "same `run` to go on "
                    "from the last checkpoint"
                )
            if self.average is not None:
                self.average.update_parameters(self.network)
            total, steps, num_images = total + loss, steps + 1, num_images + len(labels)
            watcher.step(len(labels), loss)
        return total / max(1, steps), num_images, source.waited

    def evaluate(self, class_names: tuple[str, ...]) -> dict[str, float] | None:
        """Return the validation figures over all workers, or None where there are no validation
        images.
        """
        served = self.served
        served.eval()
        if isinstance(served, EmbeddingNetwork):
            return self._find_own(served)
        evaluator = Evaluator(class_names, self.place.device, shared=self.place.world > 1)
        for batch in self.batches.validation():
            images, labels = to_device(batch, self.place.device)
            evaluator.update(torch.softmax(eval_step(served, images, self.autocast), dim=1), labels)
        evaluation = evaluator.compute()
        return evaluation.flat() if evaluation.num_images else None

    def _find_own(self, served: EmbeddingNetwork) -> dict[str, float] | None:
        """Return the figures of vectors, which are about the images of all workers together."""
        place, vectors = self.place, []
        for batch in self.batches.validation():
            images, labels = to_device(batch, place.device)
            vectors.append((eval_step(served, images, self.autocast), labels))
        size = served.head.out_features
        return retrieve_shared(vectors, size, place.device, rank=place.rank, world=place.world)

    @property
    def served(self) -> Network:
        """The network whose figures count: the average where there is one."""
        if self.average is None:
            return self.network
        return cast(Network, self.average.module)

    def state(self, history: list[EpochRecord]) -> State:
        """Return everything that going on from here needs."""
        return {
            "network": self.network.state_dict(),
            "served": self.served.state_dict(),
            "num_averaged": 0 if self.average is None else int(self.average.n_averaged),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": [asdict(record) for record in history],
        }

    def resume(self, state: State | None) -> list[EpochRecord]:
        """Take over a checkpoint's state; return the epochs that are done."""
        if state is None:
            return []
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.module.load_state_dict(state["served"])
            self.average.n_averaged.fill_(state["num_averaged"])
        self._load_optimiser(state)
        history = [EpochRecord(**record) for record in state["history"]]
        logger.info("going on after epoch %d", len(history))
        return history

    def _load_optimiser(self, state: State) -> None:
        """Take over moments and steps, but rates and decay as they are configured now: lowering
        them is what helps a run whose loss broke.
        """
        wanted = [(group["initial_lr"], group["weight_decay"]) for group in self._groups]
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.schedule.base_lrs = [lr for lr, _ in wanted]
        factors = [factor(self.schedule.last_epoch) for factor in self.schedule.lr_lambdas]
        for group, (lr, decay), factor in zip(self._groups, wanted, factors, strict=True):
            group |= {"initial_lr": lr, "weight_decay": decay, "lr": lr * factor}

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return self.optimiser.param_groups


def to_device(batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Copy a batch to the device as uint8 (a quarter of the bytes of float32) with its labels."""
    images = torch.from_numpy(batch.images)
    labels = torch.from_numpy(batch.labels)
    return images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


class _Timed:
    """Iterates over batches and adds up the time spent waiting for them."""

    def __init__(self, source: Iterator[Batch]) -> None:
        self._source = source
        self.waited = 0.0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            started = time.perf_counter()
            batch = next(self._source, None)
            self.waited += time.perf_counter() - started
            if batch is None:
                return
            yield batch
