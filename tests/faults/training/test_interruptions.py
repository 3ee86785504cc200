"""What the command says of an interrupted training is what its files say."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jobs.train.history import EpochRecord
from jobs.train.samples import FOLDER
from tests.faults.training.compare import Trace, compare
from tests.faults.training.interruptions import at_steps
from tests.faults.training.runs import BATCH, WORKERS, number_of

PATIENCE = 60.0


def begin(folder: Path, attempt: int, first: int, last: int) -> None:
    """Write down that both workers of an attempt have begun these steps of the first epoch."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    for rank in range(WORKERS):
        with (folder / FOLDER / f"{rank}-{attempt}{rank}.jsonl").open("a") as file:
            for step in range(first, last + 1):
                position = (step * WORKERS + rank) * BATCH
                file.write(json.dumps({"epoch": 0, "position": position, "ids": []}) + "\n")


def wait_for(what: Callable[[], object]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize(("goes_on_at", "again"), [(4, 3), (6, 1), (7, 0)])
def test_steps_that_are_done_again_are_counted(tmp_path: Path, goes_on_at: int, again: int) -> None:
    acted: list[int] = []
    others = threading.enumerate()
    last = ((6 + 1) * WORKERS - 1) * BATCH  # of the seventh step; no line of it comes afterwards
    with at_steps(tmp_path, [number_of((0, last))], acted.append) as seen:
        (watch,) = (thread for thread in threading.enumerate() if thread not in others)
        begin(tmp_path, 1, 0, 5)
        time.sleep(0.1)
        assert not acted
        started = time.monotonic()
        begin(tmp_path, 1, 6, 6)
        wait_for(lambda: acted)
        time.sleep(0.2)
        begin(tmp_path, 2, goes_on_at, 9)
        watch.join(PATIENCE)  # it ends when it has seen that the run goes on
        assert not watch.is_alive()
    assert acted == [0]
    assert seen[0].again == again
    assert 0.2 <= seen[0].pause <= time.monotonic() - started


def test_an_interruption_that_came_to_nothing_is_told(tmp_path: Path) -> None:
    with at_steps(tmp_path, [5, 500], lambda _: None) as seen:
        begin(tmp_path, 1, 0, 9)
        wait_for(lambda: seen)
    assert [found.at > 0 for found in seen] == [True, False]


def test_what_an_interruption_raises_is_raised_where_the_run_is(tmp_path: Path) -> None:
    def act(number: int) -> None:
        raise LookupError("no such process")

    def run() -> None:
        with at_steps(tmp_path, [1], act) as seen:
            begin(tmp_path, 1, 0, 3)
            wait_for(lambda: seen)

    with pytest.raises(LookupError, match="no such process"):
        run()


def make_trace(ids: list[int], loss: float = 0.5, weight: float = 1.0) -> Trace:
    """Return what a run of one step has left."""
    weights = {"head.weight": torch.tensor([weight, 2.0])}
    state = {"network": weights, "served": weights}
    return Trace({(0, 0): ids}, [(0, 1)], [EpochRecord(0, loss, {"accuracy": 0.9})], state)


@pytest.mark.parametrize(
    ("other", "is_noise"),
    [
        (make_trace([1, 2]), True),
        (make_trace([1, 2], loss=0.5 + 1e-9, weight=1.0 + 1e-7), True),
        (make_trace([2, 1]), False),
        (make_trace([1, 2], loss=0.501), False),
        (make_trace([1, 2], weight=1.001), False),
        (make_trace([1, 2], loss=float("nan")), False),
    ],
)
def test_other_images_figures_and_weights_are_no_noise(other: Trace, is_noise: bool) -> None:
    assert compare(other, make_trace([1, 2])).is_noise(1e-6) == is_noise
