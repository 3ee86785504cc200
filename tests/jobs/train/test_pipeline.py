"""What a run does before and after its stages."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from jobs.lease import acquire
from jobs.train.config import TrainConfig
from jobs.train.pipeline import run_training
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
