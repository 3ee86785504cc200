"""A run that is cut in the middle of an epoch ends like one that was not: the same images in every
epoch, the same figures, the same weights.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from jobs.data.streams import Batch
from jobs.train.borders import Notice, StoppedError
from jobs.train.checkpoints import Checkpoints
from jobs.train.config import CheckpointConfig, TrainConfig
from jobs.train.history import EpochRecord
from jobs.train.network import Network
from jobs.train.position import Cadence, Tally
from jobs.train.seeding import seed_step
from models.storage import Store, open_store
from tests.jobs.train.test_loop import Notes, Shades, make_config, run

STEPS = 4 * 6
CONFIG = make_config(
    optimiser={"lr": 0.02, "ema_decay": 0.9, "warmup_epochs": 1},
    augment={"horizontal_flip": True, "brightness": 0.2, "crop_scale": 0.7},
    checkpoint={"every_steps": 1},
)


@dataclass
class Log(Shades):
    """Notes which images were given, by epoch and place in it."""

    ids: dict[tuple[int, int], list[int]] = field(default_factory=dict)

    def train(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield an epoch, from `start` on."""
        for number, batch in enumerate(super().train(epoch, start)):
            given = self.ids.setdefault((epoch, start + 16 * number), batch.ids.tolist())
            assert given == batch.ids.tolist(), "a step that is done again has the same images"
            yield batch


Trained = tuple[Network, list[EpochRecord], Log]


@dataclass
class Killer(Notes):
    """Ends the run at one step, as a process that is killed."""

    at: int = 0

    def step(self, num_images: int, loss: float, waited: float = 0.0) -> None:
        """Count a step; end it all at one."""
        super().step(num_images, loss, waited)
        if self.steps == self.at:
            raise KeyboardInterrupt


def train_through(folder: Path, kills: list[int], config: TrainConfig = CONFIG) -> Trained:
    """Train with a kill after so many steps each, the run given again every time."""
    log = Log()
    for at in kills:
        with pytest.raises(KeyboardInterrupt):
            run(config, folder, Killer(at=at), log, dropout=0.3)
    network, history = run(config, folder, batches=log, dropout=0.3)
    return network, history, log


def assert_same(one: Trained, other: Trained) -> None:
    """Compare images, figures and weights."""
    assert one[2].ids == other[2].ids
    assert len(one[1]) == len(other[1])
    for mine, theirs in zip(one[1], other[1], strict=True):
        assert mine.train_loss == pytest.approx(theirs.train_loss, rel=1e-6)
        assert mine.validation == pytest.approx(theirs.validation, rel=1e-6)
    for name, value in one[0].state_dict().items():
        torch.testing.assert_close(value, other[0].state_dict()[name])


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory,
) -> Trained:
    """A run from beginning to end."""
    return train_through(tmp_path_factory.mktemp("whole"), [])


def test_kills_at_random_steps_change_nothing(tmp_path: Path, uninterrupted: Trained) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    draw = random.Random(seed)
    kills = [draw.randint(1, 4) for _ in range(5)]  # steps after each start: 20 of 24 at most
    assert_same(train_through(tmp_path, kills), uninterrupted)


@pytest.mark.parametrize("at", [1, 5, 6, 7, 23, 24])
def test_a_kill_at_the_edges_of_an_epoch_changes_nothing(
    tmp_path: Path, uninterrupted: Trained, at: int
) -> None:
    assert_same(train_through(tmp_path, [at]), uninterrupted)


@pytest.mark.parametrize("kills", [[3], [5, 1, 4], [6, 2]])
def test_a_kill_between_the_parts_of_an_update_changes_nothing(
    tmp_path: Path, kills: list[int]
) -> None:
    config = CONFIG.model_copy(update={"accumulate": 4})  # 4 and 2 of the 6 batches of an epoch
    whole = train_through(tmp_path / "whole", [], config)
    assert_same(train_through(tmp_path / "killed", kills, config), whole)


def test_a_run_goes_on_at_the_very_step_of_its_last_checkpoint(tmp_path: Path) -> None:
    begun: list[tuple[int, int, int, int]] = []

    class Begun(Notes):
        def begin(self, tally: Tally, done: int, total: int) -> None:
            begun.append((tally.epoch, tally.step, done, total))

    with pytest.raises(KeyboardInterrupt):
        run(CONFIG, tmp_path, Killer(at=11))
    last = Checkpoints(open_store(tmp_path)).find("last")
    assert last is not None
    done = 6 * last.next_epoch + last.next_step
    assert 1 <= done <= 10, "that of the step of the kill is not asked for any more"
    notes = Begun()
    run(CONFIG, tmp_path, notes)
    assert notes.steps == STEPS - done
    assert begun == [(last.next_epoch, last.next_step, done * 16, STEPS * 16)]


def test_a_run_that_is_asked_to_stop_leaves_the_step_it_is_at(tmp_path: Path) -> None:
    config = make_config(checkpoint={"every_seconds": None})

    class Preempted(Notes):
        def notice(self) -> Notice | None:
            return Notice("SIGTERM", ends=True) if self.steps == 9 else None

    with pytest.raises(StoppedError, match=r"epoch 2, step 3 of 6 because of SIGTERM"):
        run(config, tmp_path, Preempted())
    notes = Notes()
    run(config, tmp_path, notes)
    assert notes.steps == STEPS - 9, "no step is lost"


def test_a_notice_that_does_not_end_the_run_leaves_a_checkpoint(tmp_path: Path) -> None:
    config = make_config(checkpoint={"every_seconds": None})
    found: list[int] = []

    class Draining(Notes):
        def notice(self) -> Notice | None:
            if self.steps == 10:
                last = Checkpoints(open_store(tmp_path)).find("last")
                found.append(0 if last is None else last.next_step)
            return Notice("the node is drained", ends=False) if self.steps == 9 else None

    _, history = run(config, tmp_path, Draining())
    assert found == [3]
    assert len(history) == 4


@dataclass
class Validating(Log):
    """Takes its time for the batches of a validation, and ends the run at one as a kill would."""

    seconds: float = 0.0
    kill_at: int = 0
    asked: int = 0  # batches of validations

    def validation(self) -> Iterator[Batch]:
        """Yield the three batches of a validation."""
        for batch in super().validation():
            self.asked += 1
            if self.asked == self.kill_at:
                raise KeyboardInterrupt
            time.sleep(self.seconds)
            yield batch


@pytest.mark.slow
def test_a_kill_in_a_long_validation_loses_no_step(tmp_path: Path, uninterrupted: Trained) -> None:
    """The steps since the last checkpoint were lost with the validation."""
    config = CONFIG.model_copy(update={"checkpoint": CheckpointConfig(every_seconds=0.2)})
    log = Validating(seconds=0.3, kill_at=5)  # the second batch of the second epoch
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path, batches=log, dropout=0.3)
    last = Checkpoints(open_store(tmp_path)).find("last")
    assert last is not None
    assert (last.next_epoch, last.next_step, last.score) == (1, 6, None)
    notes = Notes()
    network, history = run(config, tmp_path, notes, log, dropout=0.3)
    assert notes.steps == STEPS - 12
    assert_same((network, history, log), uninterrupted)


def test_a_notice_in_a_validation_ends_it_with_all_steps(tmp_path: Path) -> None:
    config = make_config(checkpoint={"every_seconds": None})
    log = Validating()

    class Preempted(Notes):
        def notice(self) -> Notice | None:
            return Notice("SIGTERM", ends=True) if log.asked == 4 else None

    with pytest.raises(StoppedError, match=r"epoch 2, step 6 of 6 because of SIGTERM"):
        run(config, tmp_path, Preempted(), log)
    assert log.asked == 4, "the other batches are not waited for"
    notes = Notes()
    _, history = run(config, tmp_path, notes)
    assert notes.steps == STEPS - 12, "no step is lost"
    assert [record.epoch for record in history] == [0, 1, 2, 3]


def test_a_validation_writes_the_same_state_once(tmp_path: Path) -> None:
    early, late = Counting(str(tmp_path / "early")), Counting(str(tmp_path / "late"))
    config = make_config(epochs=1, checkpoint={"every_seconds": 1e9, "every_steps": 7})
    run(config, tmp_path, batches=Validating(seconds=0.05), store=early)
    assert early.states == ["00001-00000000"]
    config = make_config(epochs=1, checkpoint={"every_seconds": 0.1})
    run(config, tmp_path, batches=Validating(seconds=0.2), store=late)
    assert late.states.count("00000-00000006") == 1


@dataclass(frozen=True)
class Counting(Store):
    """Notes which states are written."""

    states: list[str] = field(default_factory=list, compare=False)

    def write(self, key: str, data: bytes) -> None:
        """Note a state; write it."""
        if key.endswith(".pt"):
            self.states.append(key[:14])
        super().write(key, data)


def test_randomness_is_a_function_of_seed_epoch_step_and_worker() -> None:
    def draw(*numbers: int) -> tuple[float, float]:
        generator = seed_step(*numbers)
        return float(torch.rand(1, generator=generator)), float(torch.rand(1))

    places = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    draws = [draw(*place) for place in places]
    assert draws == [draw(*place) for place in places]
    assert len({value for pair in draws for value in pair}) == 10


def test_a_checkpoint_is_due_by_steps_or_by_time() -> None:
    by_steps = Cadence(3, None)
    assert [by_steps.step() for _ in range(4)] == [False, False, True, True]
    by_steps.restart()
    assert not by_steps.step()
    assert Cadence(None, 1e-9).step()
    assert not Cadence(None, None).step()
    assert not Cadence(None, 1e-9).is_due, "of no step"
