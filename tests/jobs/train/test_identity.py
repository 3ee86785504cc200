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


def make_index(classes: tuple[str, ...] = ("bad", "good"), digest: str = "aa") -> Index:
    """Return an index of two images."""
    columns = {
        "path": ["1.png", "2.png"],
        "label": [0, 1],
        "split": ["train", "train"],
        "sha256": [digest, "bb"],
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


def test_what_an_older_version_did_not_write_down_is_not_compared(tmp_path: Path) -> None:
    claim_run(make_config(tmp_path), make_index(), "night")
    account = tmp_path / "night" / "run.json"
    older = {k: v for k, v in json.loads(account.read_text()).items() if k != "seed"}
    del older["preprocess"]["grey_bits"]
    account.write_text(json.dumps(older))
    claim_run(make_config(tmp_path, seed=3), make_index(), "night")


def test_a_damaged_account_of_a_run_is_an_error(tmp_path: Path) -> None:
    claim_run(make_config(tmp_path), make_index(), "night")
    (tmp_path / "night" / "run.json").write_text("{")
    with pytest.raises(StorageError, match="damaged"):
        claim_run(make_config(tmp_path), make_index(), "night")
