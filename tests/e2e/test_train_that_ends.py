"""A training under Ray Train that cannot go on ends, says why and what to change, and leaves a
checkpoint from before.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from cluster.session import Session
from jobs.train.borders import NotFiniteError
from jobs.train.config import TrainConfig
from jobs.train.samples import FOLDER
from jobs.train.trainer import train
from jobs.train.worker import open_checkpoints
from tests.faults.training.runs import Photos, Seen, run_module
from tests.faults.training.starving import KEPT, ROOM, has_room

pytestmark = [pytest.mark.ray, pytest.mark.e2e, pytest.mark.slow, pytest.mark.faults]


@pytest.fixture(scope="module")
def photos(ray_session: Session, tmp_path_factory: pytest.TempPathFactory) -> Photos:
    """160 photos of two classes."""
    return Photos.write(str(tmp_path_factory.mktemp("ends")))


@pytest.mark.timeout(600)
def test_a_loss_that_is_no_number_ends_the_run_without_further_attempts(photos: Photos) -> None:
    """A good epoch, one at a rate that breaks the weights, and the same run at a good rate."""

    def config(epochs: int, lr: float) -> TrainConfig:
        optimiser = {"lr": lr, "backbone_lr_scale": 1.0, "warmup_epochs": 0, "schedule": "constant"}
        checkpoint = {"every_seconds": None}
        return photos.config("nan", epochs=epochs, optimiser=optimiser, checkpoint=checkpoint)

    train(config(1, 0.01), photos.index, "nan", Seen())
    with pytest.raises(NotFiniteError, match=r"the loss is nan in epoch 2, step \d+; lower optim"):
        train(config(2, 1e30), photos.index, "nan", Seen())
    files = list((photos.run("nan") / FOLDER).glob("*.jsonl"))
    assert len(files) == 4, "one group of two workers for each run"
    last = open_checkpoints(config(2, 1e30), "nan").find("last")
    assert last is not None
    assert (last.next_epoch, last.next_step) == (1, 0)
    history = train(config(2, 0.01), photos.index, "nan", Seen()).history
    assert [record.epoch for record in history] == [0, 1]


@pytest.mark.timeout(600)
def test_a_worker_that_ray_ends_for_its_memory_ends_the_run_and_names_the_settings(
    photos: Photos,
) -> None:
    if not has_room():
        pytest.skip(f"less than {(ROOM + 2 * KEPT) >> 30} GiB of memory are free on this machine")
    config = photos.config("starved", epochs=100)
    file = Path(photos.uri) / "starved.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    output = run_module("tests.e2e.starved_node", str(file))
    said = json.loads(output.splitlines()[-1])
    assert said["error"] == "OutOfMemoryError", said
    assert "the memory of a node ran out and Ray ended a process there" in said["message"]
    assert "batch_size (now 4)" in said["message"]
    assert open_checkpoints(config, "starved").find("last") is not None
