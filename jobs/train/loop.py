"""Fine-tune a whole network, epoch by epoch. Plain torch: in one process, or in each of many that
torch has connected.

It takes its batches from whoever gives them and writes checkpoints through
`jobs.train.checkpoints`; it starts no workers and knows no Ray. A run that finds a checkpoint of
its own goes on at the next step, and ends like one that was never interrupted.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from jobs.train.borders import Batches, NotFiniteError, Place, StoppedError, Watcher
from jobs.train.checkpoint_writer import CheckpointWriter
from jobs.train.checkpoints import Checkpoints, State
from jobs.train.config import TrainConfig
from jobs.train.embedding_network import EmbeddingNetwork
from jobs.train.feeding import Timed, to_device
from jobs.train.history import EpochRecord, is_better, score, should_stop
from jobs.train.inputs import Inputs
from jobs.train.metric_learning import weigh_classes
from jobs.train.metrics import Evaluator
from jobs.train.network import Network
from jobs.train.objectives import build_objective, class_weights
from jobs.train.optimisers import build_optimiser
from jobs.train.position import Cadence, Tally
from jobs.train.retrieval import retrieve_shared
from jobs.train.schedules import build_schedule
from jobs.train.seeding import seed_step
from jobs.train.steps import (
    Autocast,
    build_average,
    eval_step,
    num_updates,
    part_of,
    train_step,
)
from jobs.train.wrapping import check_compiler, set_training, wrap
from models.errors import DataError

logger = logging.getLogger(__name__)


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

    Raises `DataError` if there is not one batch to train on, `NotFiniteError` if the loss is no
    longer a number, `StoppedError` if the watcher asked it to end, and `StorageError` if
    checkpoints cannot be written.
    """
    run = _Run(network, batches, config, class_counts, place)
    with CheckpointWriter(checkpoints) as writer:
        history, tally = run.resume(_last(checkpoints, place))
        if len(history) >= config.epochs:
            logger.warning(
                "this run has its %d epochs already, so nothing is trained; raise epochs to go on, "
                "or give another `run` to begin anew",
                len(history),
            )
        run.begin(tally, watcher)
        while len(history) < config.epochs:
            # Not before the full size: what is better there may be worse at first.
            grown = 0 if config.progressive is None else config.progressive.epochs
            if should_stop(history[grown:], config.monitor, config.early_stop_epochs):
                break
            run.train_epoch(tally, history, watcher, writer)
            record = tally.record(run.evaluate(class_names))
            better = is_better(record, history, config.monitor)
            history.append(record)
            tally = Tally(len(history), world=place.world)
            if place.is_first:
                writer.save(
                    run.state(history, tally),
                    next_epoch=tally.epoch,
                    score=score(record, config.monitor),
                    is_best=better,
                )
            watcher.epoch(record)
    if place.is_first:  # the others are done, and the first may still be writing
        best = checkpoints.load("best")
        assert best is not None
        network.load_state_dict(best["served"])
    return history


def _last(checkpoints: Checkpoints, place: Place) -> State | None:
    """Return the last whole state, the same on every worker: the first one chooses."""
    if place.world == 1:
        return checkpoints.load("last")
    found = checkpoints.load_last() if place.is_first else None
    chosen = [None if found is None else found[0]]
    torch.distributed.broadcast_object_list(chosen, device=place.device)
    if found is not None or chosen[0] is None:
        return None if found is None else found[1]
    return checkpoints.read(chosen[0])


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
        check_compiler(config.compile)
        self.model: nn.Module | None = None  # made by the first epoch
        self.steps = batches.num_train_batches()
        if self.steps < 1:
            raise DataError("there is not one full batch of training images; lower batch_size")
        self.optimiser = build_optimiser(self.network, config.optimiser)
        for group in self._groups:  # fewer workers than the rate is meant for
            group["lr"] *= place.world / max(place.world, config.workers.most)
        self.schedule = build_schedule(
            self.optimiser,
            config.optimiser,
            epochs=config.epochs,
            updates_per_epoch=num_updates(self.steps, config.accumulate),
        )
        self.objective = self._objective(class_counts).to(place.device)
        self.average: AveragedModel | None = build_average(self.network, config.optimiser.ema_decay)
        self.inputs = Inputs(config, len(class_counts))
        half = config.precision == "bf16" or (
            config.precision == "auto" and place.device.type == "cuda"
        )
        self.autocast = Autocast(place.device.type, half)

    def _objective(self, class_counts: Sequence[float]) -> nn.Module:
        if not isinstance(self.network, EmbeddingNetwork):
            return build_objective(self.config, class_counts)
        is_weighed = self.config.balance == "weights"
        weights = class_weights(class_counts) if is_weighed else None
        return weigh_classes(self.network.objective, weights)

    def begin(self, tally: Tally, watcher: Watcher) -> None:
        """Tell the watcher where the run stands, in images over all workers and epochs."""
        epoch = self.steps * self.config.batch_size * self.place.world
        done = min(tally.epoch * epoch + tally.position, self.config.epochs * epoch)
        watcher.begin(tally, done, self.config.epochs * epoch)

    def train_epoch(
        self, tally: Tally, history: list[EpochRecord], watcher: Watcher, writer: CheckpointWriter
    ) -> None:
        """Run what is left of an epoch, adding to its tally, with checkpoints on the way."""
        model = self._begin(tally.epoch)
        first = tally.step  # an update begins here: checkpoints lie between updates
        num_steps = first + self.batches.num_train_batches(tally.position)
        due = Cadence(self.config.checkpoint.every_steps, self.config.checkpoint.every_seconds)
        source = Timed(self.batches.train(tally.epoch, tally.position))
        before, started = tally.seconds, time.perf_counter()
        for batch in source:
            generator = seed_step(self.config.seed, tally.epoch, tally.step, self.place.rank)
            images, labels = to_device(batch, self.place.device)
            part = part_of(tally.step - first, num_steps - first, self.config.accumulate)
            loss = float(
                train_step(
                    model,
                    *self.inputs(images, labels, tally.epoch, generator),
                    objective=self.objective,
                    optimiser=self.optimiser,
                    schedule=self.schedule,
                    clip_norm=self.config.optimiser.clip_norm,
                    autocast=self.autocast,
                    part=part,
                )
            )
            if not math.isfinite(loss):
                raise self._not_finite(loss, tally)
            if self.average is not None and part.ends:
                self.average.update_parameters(self.network)
            tally.add(loss, len(labels), self.config.batch_size, source.waited)
            tally.seconds = before + time.perf_counter() - started
            watcher.step(len(labels), loss, source.waited)
            is_due = due.step()
            if part.ends:  # gradients that wait for others are in no checkpoint
                self._keep(tally, num_steps, history, watcher, writer, due, is_due=is_due)
        tally.seconds = before + time.perf_counter() - started

    def _keep(
        self,
        tally: Tally,
        num_steps: int,
        history: list[EpochRecord],
        watcher: Watcher,
        writer: CheckpointWriter,
        due: Cadence,
        *,
        is_due: bool,
    ) -> None:
        """Have a checkpoint written after an update, where one is due or asked for."""
        writer.check()
        notice = watcher.notice()
        if self.place.is_first and ((is_due and not writer.is_busy) or notice is not None):
            writer.save(self.state(history, tally), next_epoch=tally.epoch, next_step=tally.step)
            due.restart()
        if notice is not None:
            writer.flush()
            where = f"epoch {tally.epoch + 1}, step {tally.step} of {num_steps}"
            if notice.ends:
                raise StoppedError(
                    f"stopped in {where} because of {notice.reason}; a checkpoint of that step is "
                    f"in {writer.checkpoints.store.uri}"
                )
            logger.warning("%s: a checkpoint was written in %s", notice.reason, where)

    def _not_finite(self, loss: float, tally: Tally) -> NotFiniteError:
        return NotFiniteError(
            f"the loss is {loss} in epoch {tally.epoch + 1}, step {tally.step + 1}; lower "
            f"optimiser.lr (now {self.config.optimiser.lr}) or set precision: fp32, and run again "
            "with the same `run` to go on from the last checkpoint"
        )

    def _begin(self, epoch: int) -> nn.Module:
        """Return what the steps of an epoch call, the backbone frozen or not, in training mode."""
        first_whole = self.config.network.head_epochs
        head_only = epoch < first_whole
        if self.model is None or epoch == first_whole:
            self.model = wrap(
                self.network,
                head_only=head_only,
                is_compiled=self.config.compile,
                world=self.place.world,
            )
        set_training(self.model, self.network, head_only=head_only)
        return self.model

    def evaluate(self, class_names: tuple[str, ...]) -> dict[str, float] | None:
        """Return the validation figures over all workers, or None where there are no validation
        images.
        """
        served = self.served
        served.eval()
        if self.place.world > 1:  # batch norm's, which each worker has of its own images
            for buffer in served.buffers():
                torch.distributed.broadcast(buffer, 0)
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

    def state(self, history: list[EpochRecord], tally: Tally) -> State:
        """Return everything that going on from here needs."""
        return {
            "network": self.network.state_dict(),
            "served": self.served.state_dict(),
            "num_averaged": 0 if self.average is None else int(self.average.n_averaged),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": [asdict(record) for record in history],
            "tally": tally.state(),
        }

    def resume(self, state: State | None) -> tuple[list[EpochRecord], Tally]:
        """Take over a checkpoint's state; return the epochs that are done, and the one to go on
        with.
        """
        if state is None:
            return [], Tally(0, world=self.place.world)
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.module.load_state_dict(state["served"])
            self.average.n_averaged.fill_(state["num_averaged"])
        tally = Tally(**state["tally"])
        self._load_optimiser(state, tally)
        tally.world = self.place.world
        logger.info("going on in epoch %d after step %d", tally.epoch + 1, tally.step)
        return [EpochRecord(**record) for record in state["history"]], tally

    def _load_optimiser(self, state: State, tally: Tally) -> None:
        """Take over moments and steps, but rates and decay as they are configured now: lowering
        them is what helps a run whose loss broke. With another number of workers, steps are counted
        anew: as many as these would have taken so far, for those that they have left.
        """
        wanted = [(group["initial_lr"], group["weight_decay"]) for group in self._groups]
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        if tally.world != self.place.world:
            left = self.batches.num_train_batches(tally.position)
            whole, rest = (num_updates(n, self.config.accumulate) for n in (self.steps, left))
            self.schedule.last_epoch = (tally.epoch + 1) * whole - rest
        self.schedule.base_lrs = [lr for lr, _ in wanted]
        factors = [factor(self.schedule.last_epoch) for factor in self.schedule.lr_lambdas]
        for group, (lr, decay), factor in zip(self._groups, wanted, factors, strict=True):
            group |= {"initial_lr": lr, "weight_decay": decay, "lr": lr * factor}

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return self.optimiser.param_groups
