"""A run's name stands for one training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.data.index import SCHEMA, Index
from jobs.train.config import TrainConfig
from jobs.train.identity import claim_run
from models.errors import ConfigError, StorageError


def make_index(
    classes: tuple[str, ...] = ("bad", "good"), digest: str = "aa", **more: list[object]
) -> Index:
    """Return an index of two images, with `more` columns."""
    columns: dict[str, list[object]] = {
        "path": ["1.png", "2.png"],
        "label": [0, 1],
        "split": ["train", "train"],
        "sha256": [digest, "bb"],
        **more,
    }
    others = {field.name: pa.nulls(2, field.type) for field in SCHEMA if field.name not in columns}
    return Index(pa.table({**columns, **others}).select(SCHEMA.names).cast(SCHEMA), classes)


def make_config(folder: Path, **changes: object) -> TrainConfig:
    """Return a configuration whose runs go to `folder`."""
    values: Mapping[str, object] = {"name": "caps", "runs": str(folder), "data": {"uri": "x"}}
    return TrainConfig.model_validate({**values, **changes})


def test_the_same_run_goes_on_with_other_epochs(tmp_path: Path) -> None:
    claim_run(make_config(tmp_path), make_index(), "night")
    claim_run(make_config(tmp_path, epochs=99), make_index(), "night")


@pytest.mark.parametrize(
    ("index", "changes", "told"),
    [
        (make_index(classes=("good", "bad")), {}, "classes"),
        (make_index(digest="cc"), {}, "images"),
        (make_index(), {"name": "lids"}, "name"),
        (make_index(), {"network": {"backbone": "resnet18"}}, "backbone: 'tf_efficientnet_lite0'"),
        (make_index(), {"network": {"freeze": "backbone"}}, "freeze"),
        (make_index(), {"preprocess": {"height": 192, "width": 192}}, "preprocess"),
        (make_index(), {"network": {"weights": "none"}}, "weights"),
        (make_index(), {"augment": {"horizontal_flip": True}}, "augment"),
        (make_index(), {"balance": "weights"}, "balance"),
        (make_index(), {"batch_size": 32}, "batch_size"),
        (make_index(), {"seed": 3}, "seed"),
        (make_index(), {"kind": "embedding"}, "embedding"),
        (make_index(), {"monitor": "loss"}, "monitor"),
        (make_index(), {"accumulate": 2}, "accumulate"),
        (make_index(), {"loss": {"kind": "focal"}}, "loss"),
    ],
)
def test_a_name_used_for_something_else_is_refused(
    tmp_path: Path, index: Index, changes: dict[str, object], told: str
) -> None:
    claim_run(make_config(tmp_path), make_index(), "night")
    with pytest.raises(ConfigError, match=f"something else before .*{told}"):
        claim_run(make_config(tmp_path, **changes), index, "night")


def packed(container: str, *offsets: int) -> Index:
    """Return the index of the two images in a container."""
    return make_index(container=[container] * 2, offset=list(offsets), size=[5, 5])


def test_an_epoch_in_another_order_is_refused(tmp_path: Path) -> None:
    """In mid-epoch it would skip some images and see others twice."""
    here, there = packed("/set/0.shard", 0, 5), packed("s3://set/0.shard", 0, 5)
    claim_run(make_config(tmp_path), here, "night")
    with pytest.raises(ConfigError, match="shuffle: 'images', now 'runs"):
        claim_run(make_config(tmp_path), there, "night")
    data = {"uri": "x", "shuffle": "runs"}
    with pytest.raises(ConfigError, match="shuffle: 'images', now 'runs"):
        claim_run(make_config(tmp_path, data=data), here, "night")
    claim_run(make_config(tmp_path), there, "day")
    claim_run(make_config(tmp_path, data=data), here, "day")


def test_runs_of_a_set_that_was_packed_anew_are_others(tmp_path: Path) -> None:
    config = make_config(tmp_path, data={"uri": "x", "shuffle": "runs"}, seed=1)
    orders = [packed("/set/0.shard", *offsets) for offsets in ((0, 5), (5, 0))]
    claim_run(config, orders[0], "night")
    with pytest.raises(ConfigError, match="shuffle: 'runs, laid out as"):
        claim_run(config, orders[1], "night")


@pytest.mark.parametrize("changes", [{"balance": "sampling"}, {"network": {"freeze": "backbone"}}])
def test_where_nothing_is_shuffled_images_may_move(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    claim_run(make_config(tmp_path, **changes), packed("/set/0.shard", 0, 5), "night")
    claim_run(make_config(tmp_path, **changes), packed("s3://set/0.shard", 0, 5), "night")


def test_what_an_older_version_did_not_write_down_is_not_compared(tmp_path: Path) -> None:
    claim_run(make_config(tmp_path), make_index(), "night")
    account = tmp_path / "night" / "run.json"
    older = json.loads(account.read_text())
    del older["seed"], older["shuffle"]
    del older["preprocess"]["grey_bits"]
    account.write_text(json.dumps(older))
    moved = {"uri": "x", "shuffle": "runs"}
    claim_run(make_config(tmp_path, seed=3, data=moved), make_index(), "night")


def test_a_damaged_account_of_a_run_is_an_error(tmp_path: Path) -> None:
    claim_run(make_config(tmp_path), make_index(), "night")
    (tmp_path / "night" / "run.json").write_text("{")
    with pytest.raises(StorageError, match="damaged"):
        claim_run(make_config(tmp_path), make_index(), "night")
