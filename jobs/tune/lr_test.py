"""The learning-rate range test (Smith 2017, arXiv 1506.01186): train while the rate rises from very
low to far too high, and see at which the loss falls, and at which it breaks.

The steps are those of the ordinary training, with its network, batches, augmentation and loss;
with a frozen backbone, those of the head on cached features. Only the rate is another one: it is
set just before each update, so the training knows nothing of the test. Neither a checkpoint nor a
bundle comes of it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from cluster.environment import data_cpus
from jobs.data.index import Index
from jobs.data.streams import Batch
from jobs.train.borders import NotFiniteError, Place, Watcher
from jobs.train.checkpoints import Checkpoints
from jobs.train.config import TrainConfig
from jobs.train.feature_cache import FeatureCache
from jobs.train.features import Features, scratch_folder
from jobs.train.freed_memory import keeping_freed_memory
from jobs.train.frozen import fit_frozen
from jobs.train.head import HEAD_BATCH, fit_head
from jobs.train.loop import fit
from jobs.train.memory import explained_shortage
from jobs.train.worker import Share, find_device, open_images, prepare_network
from jobs.tune.config import LrTestConfig
from jobs.tune.suggestion import RangeTest, find_divergence, suggest
from models.errors import NotFoundError
from models.storage import open_store

Step = Callable[[int], None]


class _Finished(Exception):
    """The test has seen enough."""


@dataclass
class _Rise:
    """The exponentially rising rate, and what came of it."""

    config: LrTestConfig
    configured: float  # what layers' own rates are relative to
    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """The rate of the next step."""
        share = len(self.losses) / (self.config.steps - 1)
        return float(self.config.start * (self.config.end / self.config.start) ** share)

    def note(self, loss: float) -> None:
        """Take the loss of a step. Raises `_Finished` after the last one, and once it diverged."""
        self.rates.append(self.rate)
        self.losses.append(loss)
        if len(self.losses) == self.config.steps or self.diverged():
            raise _Finished

    def diverged(self) -> bool:
        """Say whether there is nothing more to learn from higher rates."""
        found = find_divergence(self.losses, self.config.smoothing, self.config.diverged)
        return found is not None

    @contextmanager
    def setting(self) -> Iterator[None]:
        """Set the rate before each update; parts of a network keep their share of it."""

        def before_step(optimiser: Optimizer, *_: Any) -> None:
            for group in optimiser.param_groups:
                group["lr"] = self.rate * group["initial_lr"] / self.configured

        hook = register_optimizer_step_pre_hook(before_step)
        try:
            yield
        except _Finished:
            pass
        except NotFiniteError:  # told instead of the loss of that step
            self.rates.append(self.rate)
            self.losses.append(math.nan)
        finally:
            hook.remove()

    def result(self) -> RangeTest:
        """Return what was found."""
        found = suggest(self.rates, self.losses, self.config.smoothing, self.config.diverged)
        return RangeTest(self.rates, self.losses, found)


def run_lr_test(
    config: TrainConfig, test: LrTestConfig, index: Index, run_id: str, advance: Step
) -> RangeTest:
    """Run the steps in this process. `advance` counts them. Needs a running Ray.

    Raises what the training raises, but for a loss that is no number, which ends the test.
    """
    rise = _Rise(test, config.optimiser.lr)
    with explained_shortage(config):
        if config.network.freeze == "backbone":
            _test_head(config, index, run_id, rise, advance)
        else:
            _test_network(config, index, rise, advance)
    return rise.result()


def _test_network(config: TrainConfig, index: Index, rise: _Rise, advance: Step) -> None:
    place = Place(find_device(config))
    images = open_images(config, index, data_cpus())
    with (
        tempfile.TemporaryDirectory(prefix="sightline-lr-") as folder,
        keeping_freed_memory(place.device.type == "cpu"),
        rise.setting(),
    ):
        store = open_store(folder)
        fit(
            prepare_network(config, len(index.classes)),
            _OneLongEpoch(Share(images, config, place, store), rise.config.steps),
            at_once(config),
            class_names=index.classes,
            class_counts=images.class_totals("train"),
            checkpoints=Checkpoints(store),
            place=place,
            watcher=_Watcher(rise, advance),
        )


def at_once(config: TrainConfig) -> TrainConfig:
    """Return the training as one epoch of the whole network on whole images from the beginning, in
    this process: one of four workers would take a quarter of each rate.
    """
    network = config.network.model_copy(update={"head_epochs": 0})
    workers = config.workers.model_copy(update={"num_workers": 0, "shard": False})
    changes = {"epochs": 1, "network": network, "progressive": None, "workers": workers}
    return config.model_copy(update=changes)


def _test_head(config: TrainConfig, index: Index, run_id: str, rise: _Rise, advance: Step) -> None:
    network = prepare_network(config, len(index.classes))
    with scratch_folder() as scratch:
        features = _features(config, index, run_id, scratch / "train")
        advance(0)
        nothing = Features(features.path, torch.zeros(0), features.num_features, torch.zeros(0))
        steps_an_epoch = max(1, len(features) // HEAD_BATCH)
        epochs = -(-rise.config.steps // steps_an_epoch)

        def note(loss: float) -> None:
            advance(1)
            rise.note(loss)

        with rise.setting():
            fit_head(
                network,
                features,
                nothing,
                config.model_copy(update={"epochs": epochs, "early_stop_epochs": None}),
                index.classes,
                lambda record: None,
                note,
            )


def _features(config: TrainConfig, index: Index, run_id: str, path: Path) -> Features:
    """Return the features of the training images from the cache; where they are not there yet, an
    ordinary training of one epoch puts them there.
    """
    cache = FeatureCache(open_store(config.runs).child("features"))
    network = prepare_network(config, len(index.classes))
    key = cache.key(config, network, index, "train", config.network.num_views, 0, 1)
    try:
        return cache.load(key, path)
    except NotFoundError:
        first = config.model_copy(update={"epochs": 1})
        images = open_images(config, index, data_cpus())
        with tempfile.TemporaryDirectory(prefix="sightline-lr-") as folder:
            fit_frozen(
                first,
                index,
                images,
                Checkpoints(open_store(folder)),
                network,
                run_id,
                Place(find_device(config)),
                _Watcher(None, lambda count: None),
            )
    try:
        return cache.load(key, path)
    except NotFoundError:  # some images could not be read this time
        return cache.load(f"{key}-{run_id}", path)


@dataclass(frozen=True)
class _OneLongEpoch:
    """Batches of as many epochs as the test has steps for, as one without validation."""

    share: Share
    num_steps: int

    def num_train_batches(self, start: int = 0) -> int:
        return self.num_steps if self.share.num_train_batches() else 0

    def train(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        epochs = (self.share.train(number) for number in count(epoch))
        return islice((batch for batches in epochs for batch in batches), self.num_steps)

    def validation(self) -> Iterator[Batch]:
        return iter(())


@dataclass(frozen=True)
class _Watcher(Watcher):
    rise: _Rise | None
    advance: Step

    def step(self, num_images: int, loss: float, waited: float = 0.0) -> None:
        self.advance(1)
        if self.rise is not None:
            self.rise.note(loss)
