"""What a run does before and after its stages."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

import jobs.lease
from cluster.environment import usable_cores
from jobs.lease import acquire
from jobs.train.bar import BarWatcher
from jobs.train.borders import Status
from jobs.train.config import TrainConfig
from jobs.train.pipeline import run_training
from jobs.train.stop import StopRequest
from jobs.train.threads import JOB, THREADS
from models.errors import ConfigError, SightlineError
from models.storage import open_store


def make_config(folder: Path) -> TrainConfig:
    """Return a configuration without weights to load, whose images are not there."""
    return TrainConfig.model_validate(
        {
            "name": "caps",
            "run": "night",
            "runs": str(folder / "runs"),
            "store": str(folder / "models"),
            "network": {"backbone": "resnet18", "weights": "none"},
            "data": {"uri": str(folder / "nowhere")},
        }
    )


def test_a_name_that_a_living_run_has_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "night" / "lock"
    folder.mkdir(parents=True)
    lease = acquire(open_store(folder), "run")
    try:
        with pytest.raises(ConfigError, match=r"another run .* or give another run"):
            run_training(make_config(tmp_path), Console(file=io.StringIO()))
    finally:
        lease.release(forget=True)


def test_a_run_that_failed_leaves_its_name_free(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(SightlineError, match="nowhere"):
            run_training(make_config(tmp_path), Console(file=io.StringIO()))
    assert not (tmp_path / "runs" / "night" / "lock").exists()


def test_a_run_says_first_what_does_nothing_in_it(tmp_path: Path) -> None:
    said = Console(file=io.StringIO(), width=400)
    changes = {"network": {"freeze": "backbone", "weights": "none"}, "augment": {"blur": 0.5}}
    values = {**make_config(tmp_path).model_dump(mode="json"), **changes}
    with pytest.raises(SightlineError, match="nowhere"):
        run_training(TrainConfig.model_validate(values), said)
    assert "note: augment.* does nothing with" in said.file.getvalue()  # type: ignore[attr-defined]


def test_a_run_whose_name_was_taken_over_stops_at_its_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.lease, "BEAT_SECONDS", 0.05)
    lease = acquire(open_store(tmp_path), "run")
    steps: list[int] = []
    console = Console(file=io.StringIO())

    def advance(
        count: int, total: int | None = None, *, note: str = "", is_past: bool = False
    ) -> None:
        steps.append(count)

    watcher = BarWatcher(console, advance, lease, StopRequest(), quiet_epochs=True)
    watcher.show(Status(0, 8, 100, 0.1, 10.0, 0.0))
    assert watcher.notice() is None
    (tmp_path / "lock-000002.json").write_text("{}")

    def go_on() -> None:
        for _ in range(500):
            watcher.notice()
            time.sleep(0.02)

    with pytest.raises(ConfigError, match="another run has taken over"):
        go_on()
    assert steps[0] == 8
    lease.release(forget=True)


def test_a_size_that_the_backbone_refuses_ends_a_run_before_images_are_read(tmp_path: Path) -> None:
    values = make_config(tmp_path).model_dump(mode="json")
    values["network"]["backbone"] = "vit_tiny_patch16_224"
    values["preprocess"] |= {"height": 160, "width": 160}
    with pytest.raises(ConfigError, match="takes no images of 160 x 160"):
        run_training(TrainConfig.model_validate(values), Console(file=io.StringIO()))


def test_a_run_that_was_submitted_computes_on_all_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setenv(JOB, "{}")
    monkeypatch.setenv(THREADS, "1")
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    with pytest.raises(SightlineError, match="nowhere"):
        run_training(make_config(tmp_path), Console(file=io.StringIO()))
    assert told == [usable_cores()]
