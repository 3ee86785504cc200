"""The training loop on real tensors: it learns, resumes, stops early, and says when it cannot go
on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import jobs.train.loop
from jobs.data.streams import Batch
from jobs.train.borders import NotFiniteError, Place, Watcher
from jobs.train.checkpoints import CheckpointInfo, Checkpoints
from jobs.train.config import TrainConfig
from jobs.train.history import EpochRecord
from jobs.train.learner import Learner
from jobs.train.loop import fit
from jobs.train.network import Network
from jobs.train.steps import train_step
from models.errors import DataError, StorageError
from models.storage import Store, open_store

CPU = Place(torch.device("cpu"))
NAMES = ("dark", "light")


def make_config(**changes: object) -> TrainConfig:
    """Return a small configuration."""
    values: dict[str, object] = {
        "name": "shades",
        "data": {"uri": "unused"},
        "preprocess": {"height": 32, "width": 32},
        "epochs": 4,
        "batch_size": 16,
        "optimiser": {"lr": 0.02, "backbone_lr_scale": 1.0, "warmup_epochs": 0.5},
        "monitor": "accuracy",
    }
    return TrainConfig.model_validate({**values, **changes})


def make_network(seed: int = 0, dropout: float = 0.0) -> Network:
    """Return a very small network with batch norm, so that buffers matter too."""
    torch.manual_seed(seed)
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return Network(body, 8, 2, dropout=dropout)


@dataclass
class Shades:
    """Dark and light noise, 32 x 32: easy to tell apart, and the same for a seed."""

    num_validation: int = 40
    seen: list[int] = field(default_factory=list)

    def images(self, ids: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Batch:
        """Return the images with these numbers."""
        labels = ids % 2
        rng = np.random.default_rng(int(ids.sum()))
        noise = rng.integers(0, 120, (len(ids), 32, 32, 3))
        return Batch((noise + labels[:, None, None, None] * 100).astype(np.uint8), labels, ids)

    def num_train_batches(self, start: int = 0) -> int:
        """Return the batches of an epoch."""
        return 6 - start // 16

    def train(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield an epoch in its own order."""
        order = np.random.default_rng(epoch).permutation(96)
        for first in range(start, 96, 16):
            ids = order[first : first + 16]
            self.seen += ids.tolist()
            yield self.images(ids)

    def validation(self) -> Iterator[Batch]:
        """Yield other images than those trained on."""
        for start in range(0, self.num_validation, 16):
            yield self.images(np.arange(1000 + start, 1000 + min(start + 16, self.num_validation)))


@dataclass
class Notes(Watcher):
    """Keeps what the loop tells."""

    steps: int = 0
    records: list[EpochRecord] = field(default_factory=list)
    stop_after: int | None = None

    def step(self, num_images: int, loss: float, waited: float = 0.0) -> None:
        """Count a step."""
        self.steps += 1

    def epoch(self, record: EpochRecord) -> None:
        """Keep a record; play a killed process where asked."""
        self.records.append(record)
        if self.stop_after is not None and len(self.records) == self.stop_after:
            raise KeyboardInterrupt


def run(
    config: TrainConfig,
    folder: Path,
    notes: Notes | None = None,
    batches: Shades | None = None,
    dropout: float = 0.0,
    store: Store | None = None,
) -> tuple[Network, list[EpochRecord]]:
    """Train the small network."""
    network = make_network(dropout=dropout)
    history = fit(
        network,
        batches or Shades(),
        config,
        class_names=NAMES,
        class_counts=(48, 48),
        checkpoints=Checkpoints(store or open_store(folder)),
        place=CPU,
        watcher=notes or Notes(),
    )
    return network, history


def test_a_run_goes_on_with_the_rate_and_the_decay_that_it_is_given_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lowering the rate is what is advised where the loss broke; the old one came back."""
    with pytest.raises(KeyboardInterrupt):
        run(make_config(), tmp_path, Notes(stop_after=2))
    rates, decays = list[float](), list[float]()

    def noting(*arguments: Any, **settings: Any) -> torch.Tensor:
        groups = settings["optimiser"].param_groups
        rates.append(max(group["lr"] for group in groups))
        decays.append(max(group["weight_decay"] for group in groups))
        return train_step(*arguments, **settings)

    monkeypatch.setattr(jobs.train.loop, "train_step", noting)
    optimiser = {"lr": 2e-4, "backbone_lr_scale": 1.0, "warmup_epochs": 0.5, "weight_decay": 0.3}
    run(make_config(optimiser=optimiser), tmp_path)
    assert len(rates) == 2 * 6
    assert 1e-5 < max(rates) < 2e-4
    assert rates == sorted(rates, reverse=True)  # in the middle of the same cosine
    assert set(decays) == {0.3}


def test_a_run_that_has_all_its_epochs_says_that_nothing_is_trained(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(make_config(), tmp_path)
    notes = Notes()
    run(make_config(), tmp_path, notes)
    assert notes.steps == 0
    assert "has its 4 epochs already, so nothing is trained" in caplog.text


def test_a_run_that_was_stopped_early_says_what_to_raise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(epochs=30, early_stop_epochs=2)
    _, history = run(config, tmp_path)
    notes = Notes()
    _, again = run(config, tmp_path, notes)
    assert (notes.steps, len(again)) == (0, len(history))
    assert f"by early_stop_epochs 2, after {len(history)} epochs" in caplog.text


def test_momentum_is_the_one_that_is_given_now(tmp_path: Path) -> None:
    learners = []
    for momentum in (0.9, 0.5):
        optimiser = {"kind": "sgd", "lr": 0.1, "momentum": momentum, "nesterov": momentum > 0.6}
        learners.append(Learner(make_network(), make_config(optimiser=optimiser), CPU, steps=6))
    learners[1].load(copy.deepcopy(learners[0].state()), None)
    for group in learners[1].optimiser.param_groups:
        assert (group["momentum"], group["nesterov"]) == (0.5, False)


def test_where_the_best_state_is_lost_the_best_of_the_epochs_to_come_is_kept(
    tmp_path: Path,
) -> None:
    _, history = run(make_config(epochs=2), tmp_path)
    assert (history[-1].validation or {})["accuracy"] == 1.0  # which no later one can beat
    (tmp_path / "best.json").unlink()
    run(make_config(epochs=4), tmp_path)
    best = Checkpoints(open_store(tmp_path)).find("best")
    assert best is not None
    assert best.next_epoch == 3
    (tmp_path / "best.json").unlink()
    with pytest.raises(StorageError, match=r"has no best epoch any more.*raise epochs"):
        run(make_config(epochs=4), tmp_path)


def test_convolutions_are_laid_out_with_their_channels_last() -> None:
    network = make_network()
    learner = Learner(network, make_config(optimiser={"ema_decay": 0.9}), CPU, steps=6)
    for one in (network, learner.served):
        weight = next(one.backbone.parameters())
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()


def test_it_learns_what_can_be_learnt(tmp_path: Path) -> None:
    _, history = run(make_config(), tmp_path)
    assert len(history) == 4
    assert history[-1].validation is not None
    assert history[-1].validation["accuracy"] == 1.0
    assert history[-1].train_loss < history[0].train_loss


def test_a_run_cut_after_an_epoch_ends_like_one_that_was_not(tmp_path: Path) -> None:
    config = make_config(optimiser={"lr": 0.02, "ema_decay": 0.9, "warmup_epochs": 1})
    whole, whole_history = run(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "cut", Notes(stop_after=2))
    seen = Shades()
    cut, cut_history = run(config, tmp_path / "cut", batches=seen)
    assert len(seen.seen) == 2 * 96, "finished epochs must not be repeated"
    assert [r.train_loss for r in cut_history] == pytest.approx(
        [r.train_loss for r in whole_history], rel=1e-5
    )
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(cut.state_dict()[name], value)


def test_the_moving_average_is_what_is_kept(tmp_path: Path) -> None:
    averaged, _ = run(make_config(optimiser={"lr": 0.02, "ema_decay": 0.95}), tmp_path / "a")
    plain, _ = run(make_config(optimiser={"lr": 0.02}), tmp_path / "b")
    assert not torch.equal(averaged.head.weight, plain.head.weight)


def test_it_stops_when_nothing_gets_better(tmp_path: Path) -> None:
    config = make_config(epochs=30, early_stop_epochs=2)
    _, history = run(config, tmp_path)
    assert 3 <= len(history) < 30


def test_validation_counts_every_image_of_an_uneven_split(tmp_path: Path) -> None:
    _, history = run(make_config(epochs=1), tmp_path, batches=Shades(num_validation=37))
    accuracy = (history[0].validation or {})["accuracy"]
    assert accuracy * 37 == pytest.approx(round(accuracy * 37))


def test_without_validation_images_the_last_epoch_is_kept(tmp_path: Path) -> None:
    _, history = run(make_config(epochs=2), tmp_path, batches=Shades(num_validation=0))
    assert [record.validation for record in history] == [None, None]
    best = Checkpoints(open_store(tmp_path)).find("best")
    assert best is not None
    assert best.next_epoch == 2


@dataclass
class Spoiler(Notes):
    """Breaks the weights behind the update of a step, as too high a rate does."""

    network: Network = field(default_factory=make_network)
    after: int = 0
    num_validation: int = 40
    said: str = ""

    def step(self, num_images: int, loss: float, waited: float = 0.0) -> None:
        """Break them at this step."""
        super().step(num_images, loss, waited)
        if self.steps == self.after:
            with torch.no_grad():
                for weights in self.network.parameters():
                    weights.fill_(1e30)  # which is a number, and what it gives is none

    def fit(self, folder: Path, **changes: object) -> CheckpointInfo | None:
        """Train until the loss is no number; return the last checkpoint that is left."""
        checkpoints = Checkpoints(open_store(folder))
        with pytest.raises(NotFiniteError) as raised:
            fit(
                self.network,
                Shades(self.num_validation),
                make_config(**changes),
                class_names=NAMES,
                class_counts=(48, 48),
                checkpoints=checkpoints,
                place=CPU,
                watcher=self,
            )
        self.said = str(raised.value)
        return checkpoints.find("last")


def test_a_loss_that_is_no_number_stops_with_advice_and_a_checkpoint(tmp_path: Path) -> None:
    spoiler = Spoiler(after=8)
    last = spoiler.fit(tmp_path)
    assert spoiler.said.startswith("the loss is nan in epoch 2, step 3; lower optimiser.lr (now 0.")
    assert last is not None
    assert (last.next_epoch, last.next_step) == (1, 0)


@pytest.mark.parametrize("after", [2, 6, 9])  # in mid-epoch, at an epoch's end, in the next one
@pytest.mark.parametrize("num_validation", [0, 40])
def test_a_checkpoint_of_broken_weights_is_none_to_go_on_from(
    tmp_path: Path, after: int, num_validation: int
) -> None:
    """It would give the same loss again, whatever the rate."""
    changes = {"checkpoint": {"every_steps": 1, "every_seconds": None}}
    last = Spoiler(after=after, num_validation=num_validation).fit(tmp_path, **changes)
    assert last is None or last.next_epoch * 6 + last.next_step < after
    _, history = run(make_config(**changes), tmp_path)
    assert len(history) == 4


def fit_with_gradients(
    folder: Path, change: Callable[[Tensor], Tensor], **changes: object
) -> tuple[list[EpochRecord], Checkpoints]:
    """Train with the gradient of the head changed."""
    network, checkpoints = make_network(), Checkpoints(open_store(folder))
    network.head.weight.register_hook(change)  # type: ignore[no-untyped-call]
    history = fit(
        network,
        Shades(),
        make_config(**changes),
        class_names=NAMES,
        class_counts=(48, 48),
        checkpoints=checkpoints,
        place=CPU,
        watcher=Notes(),
    )
    return history, checkpoints


def test_gradients_that_are_no_numbers_end_the_run(tmp_path: Path) -> None:
    """With a loss that is one, they changed nothing until the last epoch, which was published."""
    with pytest.raises(NotFiniteError, match=r"in 10 updates in a row, until epoch 2, step 4; low"):
        fit_with_gradients(tmp_path, lambda gradient: gradient * float("nan"))


def test_checkpoints_from_before_gradients_that_are_no_numbers_stay(tmp_path: Path) -> None:
    """None is written while no weight changes, which would push them out."""
    seen = 0

    def change(gradient: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        return gradient * float("nan") if seen > 14 else gradient

    with pytest.raises(NotFiniteError, match="until epoch 4, step 6"):
        fit_with_gradients(tmp_path, change, checkpoint={"every_steps": 1, "every_seconds": None})
    last = Checkpoints(open_store(tmp_path)).find("last")
    assert last is not None
    assert (last.next_epoch, last.next_step) == (3, 0)


def test_one_gradient_that_is_no_number_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen = 0

    def change(gradient: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        return gradient * float("inf") if seen in (3, 9) else gradient

    history, checkpoints = fit_with_gradients(tmp_path, change)
    assert len(history) == 4
    said = [record.getMessage() for record in caplog.records if "no number" in record.getMessage()]
    assert [line.partition(":")[0] for line in said] == ["epoch 1, step 3", "epoch 2, step 3"]
    assert said[1].endswith("(2 such so far)")
    last = checkpoints.load("last")
    assert last is not None
    assert last["schedule"]["last_epoch"] == 24  # the rate follows its plan all the same
    assert last["num_averaged"] in (0, 22)


def test_too_few_images_for_a_batch_are_an_error(tmp_path: Path) -> None:
    class Empty(Shades):
        def num_train_batches(self, start: int = 0) -> int:
            return 0

    with pytest.raises(DataError, match="batch_size"):
        run(make_config(), tmp_path, batches=Empty())


def test_a_checkpoint_cut_short_is_refused(tmp_path: Path) -> None:
    run(make_config(epochs=1), tmp_path)
    (state,) = tmp_path.glob("*.pt")
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(StorageError, match="damaged"):
        run(make_config(epochs=2), tmp_path)


def test_only_the_states_in_force_are_kept(tmp_path: Path) -> None:
    run(make_config(epochs=4), tmp_path)
    assert 2 <= len(list(tmp_path.glob("*.pt"))) <= 3  # the last two, and the best
