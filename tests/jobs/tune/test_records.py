"""What a sweep keeps of its trials, and what it says of them."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.data.index import Index
from jobs.train.config import TrainConfig
from jobs.train.history import EpochRecord
from jobs.train.worker import open_checkpoints
from jobs.tune import search
from jobs.tune.board import Board, _short, trials_table
from jobs.tune.config import TuneConfig
from jobs.tune.records import (
    Record,
    best_of,
    claim_sweep,
    make_record,
    read_records,
    write_record,
)
from jobs.tune.search import _say_if_anew
from jobs.tune.space import Trial
from models.errors import ConfigError, StorageError
from models.storage import open_store
from tests.jobs.evaluate.answers import index_rows

CONFIG = TrainConfig.model_validate(
    {"name": "caps", "data": {"uri": "images"}, "epochs": 4, "monitor": "loss"}
)


def history(*losses: float) -> list[EpochRecord]:
    """Return epochs with these validation losses."""
    return [EpochRecord(i, 1.0, {"loss": loss, "accuracy": 0.5}) for i, loss in enumerate(losses)]


def record(number: int, *losses: float, failure: str | None = None, lr: float = 0.1) -> Record:
    """Return a trial that has ended."""
    settings = {"optimiser.lr": lr, "epochs": 4}
    return make_record(number, settings, history(*losses), CONFIG, seconds=2.0, failure=failure)


def test_how_a_trial_ended_shows_in_its_epochs() -> None:
    whole = record(1, 0.9, 0.4, 0.5, 0.6)
    assert (whole.status, whole.best_epoch, whole.score) == ("finished", 2, -0.4)
    assert whole.figure("accuracy") == 0.5
    assert record(2, 0.9, 0.8).status == "stopped"
    patient = CONFIG.model_copy(update={"early_stop_epochs": 1})
    ended = make_record(3, {}, history(0.5, 0.6), patient, seconds=1)
    assert ended.status == "finished", "that it stopped by its own patience is no halving"


def test_epochs_on_small_images_do_not_use_up_the_patience_of_a_trial() -> None:
    """A trial that others had stopped was listed as one that had finished."""
    growing = {"start_size": 96, "epochs": 3}
    values = {**CONFIG.model_dump(mode="json"), "early_stop_epochs": 2, "progressive": growing}
    config = TrainConfig.model_validate({**values, "epochs": 10})
    losses = (0.5, 0.6, 0.7, 0.8, 0.9)
    assert make_record(1, {}, history(*losses), config, seconds=1).status == "stopped"
    assert make_record(1, {}, history(*losses, 1.0), config, seconds=1).status == "finished"
    frozen = {**values, "epochs": 10, "network": {"freeze": "backbone"}}
    seen = TrainConfig.model_validate(frozen)  # the full size from the first epoch on
    assert make_record(1, {}, history(*losses[:3]), seen, seconds=1).status == "finished"


def test_a_checkpoint_that_a_stopped_trial_still_had_to_write_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune tells that a trial has ended before it stops it; a thread of it may still be writing."""
    base = {
        **CONFIG.model_dump(mode="json"),
        "runs": str(tmp_path / "runs"),
        "store": str(tmp_path / "models"),
        "network": {"backbone": "mobilenetv3_small_050", "weights": "none"},
    }
    training = TrainConfig.model_validate(base)
    trials = [Trial(number, {}, training) for number in (1, 2, 3, 4)]
    ended = [record(1, 0.5), record(2, 0.2), record(3, 0.9, failure="NaN"), record(4, 0.4)]

    def run(*arguments: Any) -> None:
        board = arguments[-1]
        for one in ended:
            checkpoints = open_checkpoints(training, f"night-{one.number:04}")
            checkpoints.save({}, next_epoch=1, is_best=True)
            board.ended(one)
            checkpoints.save({}, next_epoch=2)
            if one.status != "failed":  # as a process leaves it that is killed while it writes
                Path(checkpoints.store.uri, "00003.pt#1").write_bytes(b"half")

    rows = index_rows(["a.jpg", "b.jpg"], split=["train", "validation"], label=[0, 1])
    index = Index(rows, ("good", "torn"))
    monkeypatch.setattr(search, "read_index", lambda *arguments, **options: index)
    monkeypatch.setattr(search, "await_trial", lambda *arguments: None)
    monkeypatch.setattr(search, "num_at_once", lambda *arguments: 1)
    monkeypatch.setattr(search, "run_sweep", run)
    config = TuneConfig.model_validate(
        {"name": "night", "base": "x.yaml", "trials": 4, "publish": False, "space": {"epochs": 4}}
    )
    search.sweep(config, training, trials, Console(file=io.StringIO()))
    left = {
        path.parts[-3] for path in (tmp_path / "runs").glob("*/checkpoints/*") if path.is_file()
    }
    assert left == {"night-0002", "night-0003"}, "the best one, and the one that failed"


def test_a_best_trial_without_its_checkpoints_is_said_to_be_trained_again(tmp_path: Path) -> None:
    said = Console(file=io.StringIO(), width=400)
    config = CONFIG.model_copy(update={"runs": str(tmp_path)})
    trial = Trial(7, {}, config)
    _say_if_anew(trial, "night-0007", said)
    assert isinstance(said.file, io.StringIO)
    assert "trial 7 are gone" in said.file.getvalue()
    assert "trained again from the beginning" in said.file.getvalue()
    quiet = Console(file=io.StringIO())
    open_checkpoints(config, "night-0007").save({}, next_epoch=1)
    _say_if_anew(trial, "night-0007", quiet)
    assert isinstance(quiet.file, io.StringIO)
    assert not quiet.file.getvalue()


def test_a_trial_that_failed_is_never_the_best() -> None:
    records = [record(1, 0.5), record(2, 0.1, failure="NaN"), record(3, 0.3), record(4, 0.3)]
    best = best_of(records)
    assert best is not None
    assert best.number == 3
    assert best_of([records[1]]) is None


def test_trials_are_read_back_as_they_were(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert read_records(store) == {}
    kept = {1: record(1, 0.5), 7: record(7, failure="out of memory")}
    for one in kept.values():
        write_record(store, one)
    assert read_records(store) == kept


def test_a_damaged_trial_is_named(tmp_path: Path) -> None:
    write_record(open_store(tmp_path), record(3, 0.5))
    path = tmp_path / "trials" / "0003.json"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StorageError, match=r"0003\.json is damaged .* delete it"):
        read_records(open_store(tmp_path))


def test_a_name_used_for_another_search_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    space = {"optimiser.lr": {"uniform": [0, 1]}}
    about = {"space": space, "train": {"epochs": 4}, "seed": 0}
    claim_sweep(store, about)
    claim_sweep(store, about)
    with pytest.raises(ConfigError, match=r"train\.epochs: 4, now 5"):
        claim_sweep(store, {**about, "train": {"epochs": 5}})
    with pytest.raises(ConfigError, match=r"space\.batch_size\.choice: None, now \[8\]"):
        claim_sweep(store, {**about, "space": {**space, "batch_size": {"choice": [8]}}})
    claim_sweep(store, {**about, "train": {"epochs": 4, "new": 1}})  # of a newer version


def test_the_folder_of_a_training_run_is_no_sweep(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="another name"):
        claim_sweep(open_store(tmp_path), {})


def show(*records: Record) -> str:
    """Return the table as text."""
    console = Console(file=io.StringIO(), width=120)
    console.print(trials_table(records, "loss"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_has_the_best_first_and_only_settings_that_differ() -> None:
    text = show(
        record(1, 0.5, lr=0.1), record(2, 0.01, failure="NaN", lr=0.2), record(3, 0.3, lr=0.3)
    )
    rows = [line for line in text.splitlines() if line.startswith("│")]
    assert [row.split()[1] for row in rows] == ["3", "1", "2"]
    assert " lr " in text
    assert [row.split("│")[2].strip() for row in rows] == ["0.3", "0.1", "0.2"]
    assert text.count("epochs") == 1, "the column of how many a trial had; all have epochs: 4"


def test_columns_are_named_without_sections_where_that_is_clear() -> None:
    assert _short(["a.lr", "b.height, b.width", "epochs"]) == ["lr", "height, width", "epochs"]
    assert _short(["a.lr", "b.lr"]) == ["a.lr", "b.lr"]


def test_without_a_terminal_each_trial_that_ends_is_one_line() -> None:
    console = Console(file=io.StringIO(), width=80)
    kept: list[Record] = []
    trials = [Trial(number, {"optimiser.lr": 0.1}, CONFIG) for number in (1, 2, 3)]
    board = Board(console, trials, {1: record(1, 0.5)}, kept.append)
    with board.shown():
        for number in (2, 3):
            board.started(number)
            for epoch in history(0.9, 0.8):
                board.epoch(number, epoch)
        board.ended(record(2, 0.9, 0.8))
        board.ended(record(3, 0.9, failure="the loss is nan\nlower optimiser.lr"))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(
        "trial 2 (2 of 3) stopped after 2 epochs, 2 s: loss 0.8000 in epoch 2"
    )
    assert "failed after 1 epochs" in lines[1]
    assert "the loss is nan" in lines[1]
    assert [one.number for one in kept] == [2, 3]


def test_a_terminal_shows_the_trials_at_work() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    trials = [Trial(number, {"optimiser.lr": 0.1}, CONFIG) for number in (1, 2)]
    board = Board(console, trials, {1: record(1, 0.5)}, lambda one: None)
    board.started(2)
    for epoch in history(0.9, 0.8):
        board.epoch(2, epoch)
    with board.shown():
        pass
    assert isinstance(console.file, io.StringIO)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    assert "2 of 4" in text
    assert "0.8000" in text
    assert "1/2" in text
    assert "best so far: trial 1" in text
