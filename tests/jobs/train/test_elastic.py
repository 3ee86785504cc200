"""Another number of workers goes on: with its own learning rate, and the schedule where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import jobs.train.loop
from jobs.train.checkpoints import Checkpoints
from jobs.train.config import TrainConfig
from jobs.train.steps import train_step
from jobs.train.workers_config import WorkersConfig
from models.storage import open_store
from tests.jobs.train.test_loop import make_config, run
from tests.jobs.train.test_resume import Killer


def rates(config: TrainConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Train, and return the learning rate of the head in each step."""
    seen: list[float] = []

    def noting(*arguments: Any, **settings: Any) -> torch.Tensor:
        seen.append(max(group["lr"] for group in settings["optimiser"].param_groups))
        return train_step(*arguments, **settings)

    monkeypatch.setattr(jobs.train.loop, "train_step", noting)
    run(config, folder)
    return list(seen)


def test_fewer_workers_than_the_rate_is_meant_for_take_smaller_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = rates(make_config(), tmp_path / "one", monkeypatch)
    of_four = make_config(workers={"num_workers": [1, 4]})
    assert rates(of_four, tmp_path / "four", monkeypatch) == pytest.approx([r / 4 for r in one])


def test_one_worker_goes_on_where_two_were_in_the_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is made to be that of two workers, which count half as many steps."""
    config = make_config(workers={"num_workers": [1, 2]}, checkpoint={"every_steps": 1})
    whole = rates(config, tmp_path / "whole", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "cut", Killer(at=15))
    checkpoints = Checkpoints(open_store(tmp_path / "cut"))
    found = checkpoints.load_last()
    assert found is not None
    info, state = found
    done = 6 * info.next_epoch + info.next_step
    state["tally"] |= {"world": 2, "step": info.next_step // 2}
    state["schedule"]["last_epoch"] = done // 2
    checkpoints.save(state, next_epoch=info.next_epoch, next_step=99)
    assert rates(config, tmp_path / "cut", monkeypatch) == pytest.approx(whole[done:])


@pytest.mark.parametrize("wrong", [-1, [0, 2], [3, 1]])
def test_numbers_of_workers_that_cannot_be_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="num_workers"):
        WorkersConfig.model_validate({"num_workers": wrong})
