"""Who waits for whom: trials that need the same features, and nobody else."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import jobs.lease
from jobs.lease import holding
from jobs.train.config import TrainConfig
from jobs.tune.holding import holding_features
from models.errors import ConfigError


def config(folder: Path, **network: object) -> TrainConfig:
    """Return a training with a frozen backbone."""
    return TrainConfig.model_validate(
        {
            "name": "caps",
            "runs": str(folder),
            "data": {"uri": "images"},
            "network": {"freeze": "backbone", "weights": "none", **network},
        }
    )


@pytest.mark.parametrize(
    ("network", "waits"),
    [
        ({"dropout": 0.5}, True),
        ({"num_views": 2}, False),
        ({"backbone": "resnet18"}, False),
        ({"freeze": "none"}, False),
    ],
)
def test_a_trial_waits_for_one_that_needs_the_same_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: dict[str, object], waits: bool
) -> None:
    monkeypatch.setattr(jobs.lease, "SECONDS_BETWEEN", 0.01)
    has_them = threading.Event()

    def need() -> None:
        with holding_features(config(tmp_path, **network)):
            has_them.set()

    with holding_features(config(tmp_path)):
        other = threading.Thread(target=need)
        other.start()
        assert has_them.wait(0.3 if waits else 10) is not waits
    assert has_them.wait(10)
    other.join()


def test_a_held_folder_is_refused_and_free_again_afterwards(tmp_path: Path) -> None:
    with holding(str(tmp_path), "night", "name"):
        assert (tmp_path / "night" / "lock").exists()
        with (
            pytest.raises(ConfigError, match=r"another run .* give another name"),
            holding(str(tmp_path), "night", "name"),
        ):
            pass
    with holding(str(tmp_path), "night", "name"):
        pass
    assert not (tmp_path / "night" / "lock").exists()
