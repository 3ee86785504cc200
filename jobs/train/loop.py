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
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from jobs.data.streams import Batch
from jobs.train.borders import Batches, NotFiniteError, Place, Watcher
from jobs.train.checkpoint_writer import CheckpointWriter
from jobs.train.checkpoints import Checkpoints, State
from jobs.train.config import TrainConfig
from jobs.train.embedding_network import EmbeddingNetwork
from jobs.train.feeding import Timed, to_device
from jobs.train.history import EpochRecord, is_better, score, should_stop
from jobs.train.inputs import Inputs
from jobs.train.keeper import Keeper
from jobs.train.learner import Learner
from jobs.train.metric_learning import weigh_classes
from jobs.train.metrics import Evaluator
from jobs.train.network import Network
from jobs.train.objectives import build_objective, class_weights
from jobs.train.position import Cadence, Tally
from jobs.train.retrieval import retrieve_shared
from jobs.train.seeding import seed_step
from jobs.train.sharding import in_step, share_buffers
from jobs.train.steps import Autocast, Skips, eval_step, num_updates, part_of, train_step
from jobs.train.wrapping import check_compiler, set_training, wrap
from models.errors import DataError, StorageError

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
    `config.monitor`, unless it lies in parts on all of them.

    Raises `DataError` if there is not one batch to train on, `NotFiniteError` if the loss is no
    longer a number, `StoppedError` if the watcher asked it to end, and `StorageError` if
    checkpoints cannot be written.
    """
    run = _Run(network, batches, config, class_counts, place)
    with CheckpointWriter(checkpoints) as writer:
        history, tally = run.resume(_last(checkpoints, place))
        _warn_of_the_end(history, config)
        # where the best state is lost, the best of the epochs to come
        since = 0 if checkpoints.find("best") else len(history)
        due = Cadence(config.checkpoint.every_steps, config.checkpoint.every_seconds)
        keeper = Keeper(run.learner, place, writer, due)
        run.begin(tally, watcher)
        while len(history) < config.epochs:
            if should_stop(history, config):
                break
            run.train_epoch(tally, history, watcher, keeper)
            look = partial(keeper.between_validation_batches, history, tally, watcher)
            figures = run.evaluate(class_names, look)
            if not math.isfinite((figures or {}).get("loss", 0.0)):
                what = f"the validation loss is no number after epoch {tally.epoch + 1}"
                raise run.not_finite(what, keeper)
            record = tally.record(figures)
            better = is_better(record, history[since:], config.monitor)
            history.append(record)
            tally = Tally(len(history), world=place.world)
            keeper.save(history, tally, score=score(record, config.monitor), is_best=better)
            watcher.epoch(record)
    if place.is_first and not run.learner.is_sharded:  # the others are done, and maybe gone
        best = checkpoints.load("best")
        if best is None:
            raise StorageError(
                f"{checkpoints.store.uri} has no best epoch any more, and none is left to be "
                "trained; raise epochs (or early_stop_epochs), or give another `run`"
            )
        network.load_state_dict(best["served"])
    return history


def _warn_of_the_end(history: Sequence[EpochRecord], config: TrainConfig) -> None:
    """Say so where a run that goes on has nothing left to do."""
    anew = "or give another `run` to begin anew"
    if len(history) >= config.epochs:
        logger.warning(
            "this run has its %d epochs already, so nothing is trained; raise epochs to go on, %s",
            len(history),
            anew,
        )
    elif should_stop(history, config):
        logger.warning(
            "this run was stopped early, by early_stop_epochs %d, after %d epochs, so nothing is "
            "trained; raise that to go on, %s",
            config.early_stop_epochs,
            len(history),
            anew,
        )


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
        check_compiler(config.compile)
        self.model: nn.Module | None = None  # made by the first epoch
        self.steps = batches.num_train_batches()
        if self.steps < 1:
            raise DataError("there is not one full batch of training images; lower batch_size")
        self.learner = Learner(network, config, place, self.steps)
        self.skips = Skips()
        self.objective = self._objective(class_counts).to(place.device)
        self.inputs = Inputs(config, len(class_counts))
        half = config.precision == "bf16" or (
            config.precision == "auto" and place.device.type == "cuda"
        )
        self.autocast = Autocast(place.device.type, half)

    def _objective(self, class_counts: Sequence[float]) -> nn.Module:
        network = self.learner.network
        if not isinstance(network, EmbeddingNetwork):
            return build_objective(self.config, class_counts)
        is_weighed = self.config.balance == "weights"
        weights = class_weights(class_counts) if is_weighed else None
        return weigh_classes(network.objective, weights)

    def begin(self, tally: Tally, watcher: Watcher) -> None:
        """Tell the watcher where the run stands, in images over all workers and epochs."""
        epoch = self.steps * self.config.batch_size * self.place.world
        done = min(tally.epoch * epoch + tally.position, self.config.epochs * epoch)
        watcher.begin(tally, done, self.config.epochs * epoch)

    def train_epoch(
        self, tally: Tally, history: list[EpochRecord], watcher: Watcher, keeper: Keeper
    ) -> None:
        """Run what is left of an epoch, adding to its tally, with checkpoints on the way."""
        model = self._begin(tally.epoch)
        first = tally.step  # an update begins here: checkpoints lie between updates
        num_steps = first + self.batches.num_train_batches(tally.position)
        keeper.due.restart()
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
                    optimiser=self.learner.optimiser,
                    schedule=self.learner.schedule,
                    clip_norm=self.config.optimiser.clip_norm,
                    autocast=self.autocast,
                    part=part,
                    skips=self.skips,
                )
            )
            if not math.isfinite(loss):
                what = f"the loss is {loss} in epoch {tally.epoch + 1}, step {tally.step + 1}"
                raise self.not_finite(what, keeper)
            if part.ends:
                self._follow(tally)
            tally.add(loss, len(labels), self.config.batch_size, source.waited)
            tally.seconds = before + time.perf_counter() - started
            watcher.step(len(labels), loss, source.waited)
            # one of weights that were not changed would only push out an older one
            is_due = keeper.due.step() and not self.skips.in_a_row
            if part.ends:  # gradients that wait for others are in no checkpoint
                keeper.update(history, tally, num_steps, watcher, is_due=is_due)
        tally.seconds = before + time.perf_counter() - started

    def _follow(self, tally: Tally) -> None:
        """Have the average follow an update, if it was one."""
        if not self.skips.in_a_row:
            self.learner.follow()
            return
        where = f"epoch {tally.epoch + 1}, step {tally.step + 1}"
        if self.skips.are_too_many:
            # with a loss that is one the weights may be good, and are kept
            what = f"the gradient is no number in {self.skips.most} updates in a row, until {where}"
            raise NotFiniteError(
                f"{what}; lower optimiser.lr (now {self.config.optimiser.lr}), set precision: fp32 "
                "or change what is trained, and run again with the same `run` to go on from the "
                "last checkpoint"
            )
        if self.skips.in_a_row == 1:
            logger.warning(
                "%s: the gradient is no number, so the weights stay as they are (%d such so far)",
                where,
                self.skips.total,
            )

    def not_finite(self, what: str, keeper: Keeper) -> NotFiniteError:
        """Return the error of weights that give no number. In float32 a checkpoint of them would
        give none again at any rate, so it is withdrawn; in bfloat16 they may be good.
        """
        advice = f"lower optimiser.lr (now {self.config.optimiser.lr})"
        if self.autocast.enabled:
            advice += " or set precision: fp32"
        elif keeper.withdraw():
            advice += "; the last checkpoint had these weights, so it was removed"
        return NotFiniteError(
            f"{what}; {advice}. Run again with the same `run` to go on from the last checkpoint "
            "that is left; if this comes again whatever the rate, delete that one in "
            f"{keeper.writer.checkpoints.store.uri}"
        )

    def _begin(self, epoch: int) -> nn.Module:
        """Return what the steps of an epoch call, the backbone frozen or not, in training mode."""
        first_whole = self.config.network.head_epochs
        head_only = epoch < first_whole
        if self.model is None or epoch == first_whole:
            self.model = wrap(
                self.learner.network,
                head_only=head_only,
                is_compiled=self.config.compile,
                world=self.place.world,
            )
        set_training(self.model, self.learner.network, head_only=head_only)
        return self.model

    def evaluate(
        self, class_names: tuple[str, ...], look: Callable[[], None]
    ) -> dict[str, float] | None:
        """Return the validation figures over all workers, or None where there are no validation
        images. `look` is called after every batch, and may raise.
        """
        place, served = self.place, self.learner.served
        served.eval()
        if place.world > 1:
            share_buffers(served)
        answers = self._answers(served, look)
        if isinstance(served, EmbeddingNetwork):  # about the images of all workers together
            size = served.head.out_features
            return retrieve_shared(answers, size, place.device, rank=place.rank, world=place.world)
        evaluator = Evaluator(class_names, place.device, shared=place.world > 1)
        for logits, labels in answers:
            evaluator.update(torch.softmax(logits, dim=1), labels)
        evaluation = evaluator.compute()
        return evaluation.flat() if evaluation.num_images else None

    def _answers(
        self, served: Network, look: Callable[[], None]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what the network answers to this worker's validation images, and their labels."""
        device, size = self.place.device, self.config.preprocess
        batches: Iterable[Batch | None] = self.batches.validation()
        if self.learner.is_sharded:
            batches = in_step(batches, device)
        for batch in batches:
            if batch is None:  # the others have one more, and need this worker's parts
                nothing = torch.zeros(1, size.height, size.width, 3, dtype=torch.uint8)
                eval_step(served, nothing.to(device), self.autocast)
            else:
                images, labels = to_device(batch, device)
                yield eval_step(served, images, self.autocast), labels
            look()

    def resume(self, state: State | None) -> tuple[list[EpochRecord], Tally]:
        """Take over a checkpoint's state; return the epochs that are done, and the one to go on
        with.
        """
        if state is None:
            return [], Tally(0, world=self.place.world)
        tally = Tally(**state["tally"])
        self.learner.load(state, self._updates(tally))
        tally.world = self.place.world
        logger.info("going on in epoch %d after step %d", tally.epoch + 1, tally.step)
        return [EpochRecord(**record) for record in state["history"]], tally

    def _updates(self, tally: Tally) -> int | None:
        """Return the updates that these workers would have made so far, for those that they have
        left, where it were not as many workers.
        """
        if tally.world == self.place.world:
            return None
        left = self.batches.num_train_batches(tally.position)
        whole, rest = (num_updates(n, self.config.accumulate) for n in (self.steps, left))
        return (tally.epoch + 1) * whole - rest
