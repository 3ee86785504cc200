"""Which images are judged, and that two models are asked about the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from jobs.data.index import Index
from jobs.evaluate.config import EvaluateJob
from jobs.evaluate.output import SUMMARY, default_output
from jobs.evaluate.outputs import Outputs
from jobs.evaluate.run import (
    Evaluation,
    Subject,
    choose_images,
    engine_options,
    on_both,
    told_apart,
)
from models.bundle import Bundle, open_bundle
from models.engines.base import EngineOptions
from models.errors import ConfigError, DataError, EngineError
from models.label_map import Reading, identity_map
from models.storage import open_store
from tests.bundles import tiny_bundle
from tests.jobs.evaluate.answers import index_rows


def index(splits: list[str]) -> Index:
    paths = [f"{number}.jpg" for number in range(len(splits))]
    labels: list[object] = [0] * len(splits)
    return Index(index_rows(paths, split=list(splits), label=labels), ("good", "torn"))


def test_only_the_images_of_the_split_are_judged_or_all_of_them() -> None:
    whole = index(["train", "test", "validation", "test"])
    assert choose_images(whole, "test", "/set").table["path"].to_pylist() == ["1.jpg", "3.jpg"]
    for split, count in (("validation", 1), ("train", 1), ("all", 4)):
        chosen = choose_images(whole, split, "/set")
        assert chosen.num_images() == chosen.num_images("test") == count


def test_a_split_without_images_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(DataError, match=r"'validation'; it has 2 train, 0 validation, 1 test"):
        choose_images(index(["train", "train", "test"]), "validation", "/set")


def subject(store: Path, *, revision: int = 0) -> Subject:
    """Return the next version of a bundle."""
    bundle = open_bundle(tiny_bundle(store, kind="dynamic", name="caps"), cache=store / "cache")
    return Subject(bundle, reading(bundle, revision))


def reading(bundle: Bundle, revision: int) -> Reading:
    classes = bundle.manifest.classes
    return Reading(identity_map(classes), classes, revision)


def test_bundles_of_one_name_are_told_apart_by_their_stores(tmp_path: Path) -> None:
    """A comparison said that caps/1 is better than caps/1."""
    old, new = tmp_path / "old", tmp_path / "new"
    one, other = told_apart(subject(old), subject(new))
    assert (one.label, other.label) == (f"caps/1 ({old})", f"caps/1 ({new})")
    one, other = told_apart(subject(new), other)
    assert one.label == "caps/2"


def test_one_bundle_with_other_labels_is_told_apart_by_the_label_revision(tmp_path: Path) -> None:
    plain = subject(tmp_path)
    labelled = replace(plain, reading=reading(plain.bundle, 4))
    one, other = told_apart(labelled, plain)
    assert (one.label, other.label) == ("caps/1 (label revision 4)", "caps/1 (its own labels)")
    stores = [replace(labelled, labels=f"s3://factory/{name}") for name in "ab"]
    one, other = told_apart(*stores)
    assert one.label == "caps/1 (labels of s3://factory/a)"
    assert told_apart(plain, plain) == (plain, plain)


def test_both_are_named_where_store_and_labels_differ(tmp_path: Path) -> None:
    new = subject(tmp_path / "new", revision=4)
    one, other = told_apart(new, subject(tmp_path / "old"))
    assert one.label == f"caps/1 ({tmp_path / 'new'}, label revision 4)"
    assert other.label == f"caps/1 ({tmp_path / 'old'}, its own labels)"


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_the_engine_of_a_server_with_a_gpu_is_asked_where_that_is_wanted(tmp_path: Path) -> None:
    job = EvaluateJob.model_validate({"data": {"uri": str(tmp_path)}})
    asked = subject(tmp_path)
    chosen = index(["test"])
    on_gpu = Evaluation(job, asked, Console(quiet=True), options=engine_options("cuda"))
    with pytest.raises(EngineError, match="torch finds no CUDA device") as raised:
        on_gpu._ask(asked, chosen, chosen)
    assert "openvino" not in str(raised.value)
    assert engine_options("cpu").engines == EngineOptions().engines


def test_an_evaluation_of_another_bundle_of_the_same_name_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = subject(tmp_path / "old").bundle, subject(tmp_path / "new").bundle
    folder = default_output("s3://factory/caps", one)
    assert folder == ".sightline/evaluate/caps/caps-1"
    assert default_output("s3://factory/caps", one, 4) == f"{folder}-labels-4"
    summary = {"source": "s3://factory/caps", "bundle": one.uri}
    open_store(folder).write(SUMMARY, json.dumps(summary).encode())
    assert default_output("s3://factory/caps", one) == folder
    with pytest.raises(ConfigError, match=r"holds an evaluation with .*old/caps/1.* with --out"):
        default_output("s3://factory/caps", other)
    with pytest.raises(ConfigError, match="with s3://factory/caps, which has the same name"):
        default_output("s3://line-5/caps", one)
    open_store(folder).write(SUMMARY, b"{}")
    assert default_output("s3://factory/caps", other) == folder


def test_images_that_only_one_of_two_models_could_read_are_left_out() -> None:
    def outputs(rows: list[int]) -> Outputs:
        probabilities = np.array([[row / 10, 1 - row / 10] for row in rows], np.float32)
        numbers = np.array(rows, np.int64)
        return Outputs(probabilities, numbers * 0, numbers, numbers.astype(np.float32), "engine")

    one, other = on_both(outputs([0, 1, 3, 4]), outputs([1, 2, 3]))
    assert one.rows.tolist() == other.rows.tolist() == [1, 3]
    np.testing.assert_allclose(one.probabilities[:, 0], [0.1, 0.3])
    np.testing.assert_allclose(one.brightness, [1, 3])
