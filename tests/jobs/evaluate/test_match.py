"""Labels of a source are those of the model by name, or the evaluation says what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.session import Session
from jobs.data import sources
from jobs.data.config import DataConfig
from jobs.data.index import build_index
from jobs.evaluate.match import LabelMatcher
from models.errors import DataError
from models.label_map import LabelMap, Reading, first_reading, identity_map
from models.labels import OutputClass
from models.preprocess import PreprocessSpec
from tests.jobs.data.images import class_files, write

CLASSES = tuple(OutputClass(id=name, name=name) for name in ("good", "dented", "torn"))


def listing(labels: Sequence[str], splits: Sequence[str | None] | None = None) -> pa.Table:
    columns = {
        "path": [f"{number}.jpg" for number in range(len(labels))],
        "label": list(labels),
        "split": list(splits) if splits else [None] * len(labels),
    }
    return pa.Table.from_batches([sources.complete(columns, len(labels))])


def match(
    labels: Sequence[str], reading: Reading | None = None, **data: object
) -> tuple[list[str], LabelMatcher]:
    """Return the model's label of each row."""
    matcher = LabelMatcher("caps/3", reading or first_reading(CLASSES))
    config = DataConfig.model_validate({"uri": "/set", **data})
    _, numbers, names = matcher(listing(labels), config)
    return [names[number] for number in numbers.tolist()], matcher


def test_labels_are_the_models_whatever_the_order_or_how_few() -> None:
    assert match(["torn", "good", "torn"])[0] == ["torn", "good", "torn"]


def test_a_stranger_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(DataError, match=r"'dentet' \(nearest: 'dented'\)") as raised:
        match(["good", "dentet"])
    for part in ("/set", "caps/3", "data.rename", "data.drop"):
        assert part in str(raised.value)


def test_rules_of_the_data_section_come_first() -> None:
    found, _ = match(["ok", "beule"], rename={"ok": "good", "beule": "dented", "riss": "torn"})
    assert found == ["good", "dented"]


def test_another_spelling_is_taken_and_said() -> None:
    found, matcher = match(["Good", "torn"])
    assert found == ["good", "torn"]
    assert matcher.notes == ["images of 'Good' count as 'good'"]


def test_a_label_map_leads_old_names_to_the_label_that_holds_them_now() -> None:
    first = identity_map(CLASSES)
    good, dented, torn = first.labels
    merged = LabelMap(
        fingerprint=first.fingerprint,
        labels=(
            good.model_copy(update={"aliases": ("ok",)}),
            dented.model_copy(update={"name": "defective", "outputs": ("dented", "torn")}),
            torn.model_copy(update={"status": "retired", "merged_into": "dented"}),
        ),
    )
    found, matcher = match(["ok", "torn", "dented", "defective"], Reading(merged, CLASSES, 4))
    assert found == ["good", "defective", "defective", "defective"]
    assert matcher.sources == {0: {"ok"}, 1: {"torn", "dented", "defective"}}


def test_only_the_split_that_is_judged_is_read_where_the_source_gives_all_of_them() -> None:
    labels, splits = ["good"] * 4, ["train", "test", "val", "testing"]
    config = DataConfig(uri="/set")

    def kept(given: Sequence[str | None], split: str | None) -> list[str]:
        matcher = LabelMatcher("caps/3", first_reading(CLASSES), split=split)
        table, numbers, _ = matcher(listing(labels, given), config)
        assert len(numbers) == len(table)
        paths: list[str] = table["path"].to_pylist()
        return paths

    assert kept(splits, "test") == kept(splits, None) == ["1.jpg", "3.jpg"]
    assert kept(splits, "validation") == ["2.jpg"]
    assert len(kept(splits, "train")) == 4  # some may be carved out of it
    assert len(kept(splits, "all")) == 4
    assert len(kept([None, "test", "val", "test"], "test")) == 4
    assert len(kept(["train"] * 4, "test")) == 4


@pytest.mark.ray
def test_merged_labels_are_split_as_they_were_when_the_model_was_trained(
    ray_session: Session, tmp_path: Path
) -> None:
    """Split by the merged labels, images of training were judged."""
    write(tmp_path, class_files({"good": 60, "dented": 30, "torn": 40}))
    config, spec = DataConfig(uri=str(tmp_path)), PreprocessSpec(height=16, width=16)
    trained = build_index(config, spec)
    first = identity_map(CLASSES)
    good, dented, torn = first.labels
    merged = LabelMap(
        fingerprint=first.fingerprint,
        labels=(
            good,
            dented.model_copy(update={"outputs": ("dented", "torn")}),
            torn.model_copy(update={"status": "retired", "merged_into": "dented"}),
        ),
    )
    matcher = LabelMatcher("caps/3", Reading(merged, CLASSES, 1))
    judged = build_index(config, spec, matcher=matcher)
    assert judged.classes == ("good", "dented")
    splits = [
        dict(zip(index.table["path"].to_pylist(), index.table["split"].to_pylist(), strict=True))
        for index in (trained, judged)
    ]
    assert splits[0] == splits[1]
