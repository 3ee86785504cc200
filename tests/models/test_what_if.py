"""What a label map would do, replayed on stored outputs: the same answers that serving gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.bundle import open_bundle
from models.errors import BundleError, LabelMapError
from models.label_edits import Edit, Hide, Merge, Rename, SetThreshold, apply_edits
from models.label_map import UNKNOWN, Reading, first_reading, identity_map
from models.labels import OutputClass
from models.manifest import Manifest
from models.validation_outputs import (
    MAX_IMAGES,
    VALIDATION,
    ValidationOutputs,
    dump_outputs,
    load_outputs,
)
from models.what_if import Figures, WhatIf, compare
from tests.bundles import tiny_bundle
from tests.models.test_label_map import BASE, CLASSES, edits

# Four images of a, b, b and c; the second b is taken for an a.
ROWS = np.array(
    [[0.9, 0.1, 0, 0, 0], [0.2, 0.8, 0, 0, 0], [0.6, 0.4, 0, 0, 0], [0, 0.45, 0.55, 0, 0]],
    np.float32,
)
FOUR = ValidationOutputs("validation", ROWS, np.array([0, 1, 1, 2]))


def after(*some: Edit) -> WhatIf:
    """Return what edits would do to the four images."""
    changed = Reading(apply_edits(BASE, some, CLASSES), CLASSES, 1)
    found = compare(FOUR, first_reading(CLASSES), changed)
    assert found is not None
    return found


@given(st.lists(edits, max_size=6), st.integers(0, 2**32 - 1))
def test_replayed_answers_are_those_that_serving_gives(some: list[Edit], seed: int) -> None:
    label_map = BASE
    for edit in some:
        try:
            label_map = apply_edits(label_map, [edit], CLASSES)
        except LabelMapError:
            continue
    reading = Reading(label_map, CLASSES, 1)
    rows = np.random.default_rng(seed).dirichlet(np.ones(len(CLASSES)), 20).astype(np.float32)
    living = reading.label_map.living
    for row, winner in zip(rows, reading.winners(rows), strict=True):
        expected = label_map.unknown if winner == UNKNOWN else living[winner].name
        assert reading.read(row, scores="none").label == expected


def test_figures_before_are_those_of_the_map_as_it_is() -> None:
    found = after(Rename(label="e", name="E2"))
    assert found.before == found.after == Figures(4, 3 / 4, 1.0, 0.0, 3 / 4)
    assert [each.id for each in found.labels] == list("abcde")
    b = found.labels[1]
    assert b.before == Figures(2, 1 / 2, 1.0, 0.0, 1 / 2)
    assert found.labels[3].before is None  # no image of d
    assert (found.split, found.num_images) == ("validation", 4)


def test_merging_what_is_confused_makes_it_right() -> None:
    found = after(Merge(labels=("b",), into="a"))
    assert found.after.right == 1.0
    a, b = found.labels[0], found.labels[-1]
    assert a.after is not None
    assert (a.after.num_images, a.after.accuracy) == (3, 1.0)
    assert (b.id, b.label, b.after) == ("b", "B", None)
    assert b.before is not None


def test_a_threshold_trades_coverage_for_accuracy() -> None:
    found = after(SetThreshold(threshold=0.7))
    assert found.after == Figures(4, 1.0, 0.5, 0.5, 0.5)


def test_a_hidden_label_is_never_right() -> None:
    found = after(Hide(label="a"))
    a = found.labels[0]
    assert a.after == Figures(1, None, 0.0, 1.0, 0.0)
    assert found.after.unknown == 0.5  # the a, and the b that is taken for one


def test_nothing_can_be_told_without_an_image() -> None:
    empty = ValidationOutputs("validation", ROWS[:0], FOUR.truth[:0])
    assert compare(empty, first_reading(CLASSES), first_reading(CLASSES)) is None


def test_a_thousand_classes_and_many_images_take_no_time() -> None:
    classes = tuple(OutputClass(id=str(n), name=f"class {n}") for n in range(1000))
    rows = np.random.default_rng(0).dirichlet(np.ones(1000), 2000).astype(np.float32)
    outputs = ValidationOutputs("test", rows, np.arange(2000) % 1000)
    merged = apply_edits(
        identity_map(classes),
        [Merge(labels=tuple(str(n) for n in range(1, 500)), into="0")],
        classes,
    )
    found = compare(outputs, first_reading(classes), Reading(merged, classes, 1))
    assert found is not None
    assert len(found.labels) == 1000
    assert found.after.right > found.before.right


def test_outputs_are_kept_in_the_bundle_and_read_again(tmp_path: Path) -> None:
    bundle = open_bundle(tiny_bundle(tmp_path, kind="dynamic"), tmp_path / "cache")
    outputs = load_outputs(bundle)
    assert outputs is not None
    assert outputs.probabilities.shape == (60, 2)
    np.testing.assert_allclose(outputs.probabilities.sum(axis=1), 1, atol=2e-3)
    generic = open_bundle(tiny_bundle(tmp_path, name="other"), tmp_path / "cache")
    assert load_outputs(generic) is None


def test_of_many_images_an_even_share_is_kept(tmp_path: Path) -> None:
    count = 3 * MAX_IMAGES
    rows = np.full((count, 2), 0.5, np.float32)
    many = ValidationOutputs("test", rows, np.arange(count) * 2 // count)
    path = tmp_path / VALIDATION
    path.write_bytes(dump_outputs(many))
    truth = np.load(path)["truth"]
    assert len(truth) == MAX_IMAGES
    assert abs(truth.mean() - 0.5) < 0.001


@pytest.mark.parametrize(
    "content",
    [
        b"garbage",
        b"PK\x03\x04",
        dump_outputs(ValidationOutputs("test", ROWS, np.array([0, 1, 1, 7]))),
        dump_outputs(ValidationOutputs("test", ROWS[:, :1], np.array([0, 0, 0, 0]))),
    ],
)
def test_outputs_that_are_not_of_the_model_are_refused(tmp_path: Path, content: bytes) -> None:
    from models.bundle import describe_file, publish

    base = open_bundle(tiny_bundle(tmp_path, name="other"), tmp_path / "cache").manifest
    (tmp_path / VALIDATION).write_bytes(content)
    artifacts = (describe_file(tmp_path / VALIDATION),)
    manifest = Manifest.model_validate({**base.model_dump(), "artifacts": artifacts})
    bundle = open_bundle(publish(tmp_path, manifest, tmp_path).uri, tmp_path / "cache")
    with pytest.raises(BundleError, match=VALIDATION):
        load_outputs(bundle)
