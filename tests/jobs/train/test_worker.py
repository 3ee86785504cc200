"""One worker's share of the images is what the configuration says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.data.index import SCHEMA, Index
from jobs.data.quarantine import Broken
from jobs.train.borders import Place
from jobs.train.worker import Share, _keep_broken, open_images
from models.storage import open_store
from tests.jobs.train.test_loop import make_config

NUM_GOOD, NUM_BAD = 60, 4


def make_share(folder: Path, rank: int = 0, world: int = 1, **changes: object) -> Share:
    """Return the share of a worker of a set in which one class is rare."""
    count = NUM_GOOD + NUM_BAD
    columns = {
        "path": [f"{number}.png" for number in range(count)],
        "label": [0] * NUM_GOOD + [1] * NUM_BAD,
        "split": ["train"] * count,
        "sha256": [f"{number:02}" for number in range(count)],
    }
    others = {f.name: pa.nulls(count, f.type) for f in SCHEMA if f.name not in columns}
    table = pa.table({**columns, **others}).select(SCHEMA.names).cast(SCHEMA)
    config = make_config(**changes)
    images = open_images(config, Index(table, ("good", "bad")))
    place = Place(torch.device("cpu"), rank, world)
    return Share(images, config, place, open_store(folder))


def seen(share: Share, epoch: int, start: int = 0) -> list[int]:
    """Return the rows that a worker takes in an epoch."""
    rows: list[int] = share.images.order("train", **share.order(epoch, start)).tolist()
    return rows


@pytest.mark.parametrize(("balance", "num_bad"), [("none", NUM_BAD), ("sampling", 32)])
def test_a_rare_class_is_drawn_as_often_as_another_where_that_is_asked(
    tmp_path: Path, balance: str, num_bad: int
) -> None:
    share = make_share(tmp_path, balance=balance)
    for epoch in range(3):
        labels = share.images.labels("train")[seen(share, epoch)]
        assert np.bincount(labels).tolist() == [64 - num_bad, num_bad]


def test_workers_share_an_epoch_and_go_on_in_it(tmp_path: Path) -> None:
    whole = seen(make_share(tmp_path), 1)
    assert sorted(whole) == list(range(64))
    assert whole != seen(make_share(tmp_path), 0)
    assert whole != seen(make_share(tmp_path, seed=1), 1)
    pair = [make_share(tmp_path, rank, 2) for rank in (0, 1)]
    assert [share.num_train_batches() for share in pair] == [2, 2]
    assert seen(pair[0], 1)[:16] + seen(pair[1], 1)[:16] == whole[:32]
    assert seen(pair[1], 1, start=32) == whole[48:]
    assert pair[0].num_train_batches(start=64) == 0


def test_a_list_of_broken_images_that_cannot_be_written_ends_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    config = make_config(runs=str(tmp_path / "file" / "runs"))
    _keep_broken([Broken("a.png", "cut short")], config, "night", Place(torch.device("cpu")))
    assert "when training reached them, and could not be listed (" in caplog.text
