"""Which images every step had is written down, and where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.data.streams import Batch
from jobs.train.borders import Place
from jobs.train.config import written_by
from jobs.train.samples import read_samples, recorded
from jobs.train.worker import check_tracking
from models.errors import ConfigError
from models.storage import open_store
from tests.jobs.train.test_loop import make_config

PAIR = Place(torch.device("cpu"), 0, 2)


def batches(count: int) -> list[Batch]:
    """Return batches of two images."""
    images = np.zeros((2, 4, 4, 3), np.uint8)
    return [
        Batch(images, np.zeros(2, np.int64), np.array([2 * i, 2 * i + 1])) for i in range(count)
    ]


def test_which_images_a_step_had_is_written_before_it_is_taken(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    begun = recorded(iter(batches(3)), store, PAIR, epoch=4, start=20, batch_size=2)
    next(begun), next(begun)
    assert read_samples(tmp_path) == {(4, 20): [0, 1], (4, 24): [2, 3]}
    (tmp_path / "samples" / "0-1.jsonl").write_text('{"epoch": 4, "posi')  # cut by a kill
    list(recorded(iter(batches(3)), store, PAIR, epoch=4, start=20, batch_size=2))
    assert len(read_samples(tmp_path)) == 3


def test_a_step_that_had_other_images_the_second_time_is_found(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    list(recorded(iter(batches(2)), store, PAIR, epoch=0, start=0, batch_size=2))
    list(recorded(iter(batches(1)), store, PAIR, epoch=0, start=4, batch_size=2))
    with pytest.raises(ValueError, match=r"\(0, 4\) had \[2, 3\] before, and \[0, 1\] now"):
        read_samples(tmp_path)


def test_sample_ids_need_a_folder() -> None:
    store = open_store("s3://bucket/runs/night")
    with pytest.raises(ConfigError, match="a bucket cannot take"):
        next(recorded(iter(batches(1)), store, PAIR, 0, 0, 2))


def test_a_run_in_a_bucket_can_name_a_folder_for_its_sample_ids(tmp_path: Path) -> None:
    config = make_config(runs="s3://bucket/runs", tracking={"sample_ids": str(tmp_path)})
    check_tracking(config)
    assert written_by(config)["tracking.sample_ids"] == str(tmp_path)
    with pytest.raises(ConfigError, match=r"name one in tracking\.sample_ids"):
        check_tracking(make_config(runs="s3://bucket/runs", tracking={"sample_ids": True}))
