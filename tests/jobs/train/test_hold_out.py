"""Classes that are held out are nowhere in training."""

from __future__ import annotations

import pyarrow as pa
import pytest

from jobs.data.index import SCHEMA, Index
from jobs.train.hold_out import has_pair, hold_out, refuse_lonely
from models.errors import ConfigError, DataError

NAMES = ("bolt", "cap", "nut", "ring", "washer")


def make_index(names: tuple[str, ...] = NAMES) -> Index:
    """Return an index with ten images of each class, of every split."""
    labels = [label for label in range(len(names)) for _ in range(10)]
    columns = {
        "path": [f"{names[label]}/{i}.png" for i, label in enumerate(labels)],
        "label": labels,
        "split": [("train", "train", "train", "validation", "test")[i % 5] for i in range(50)][
            : len(labels)
        ],
        "sha256": [f"{i:02}" for i in range(len(labels))],
    }
    count = len(labels)
    others = {f.name: pa.nulls(count, f.type) for f in SCHEMA if f.name not in columns}
    return Index(pa.table({**columns, **others}).select(SCHEMA.names).cast(SCHEMA), names)


def classes_of(index: Index) -> dict[str, set[str]]:
    """Return the classes that the paths say and that the labels say, which must agree."""
    paths = index.table["path"].to_pylist()
    labels = index.table["label"].to_pylist()
    said = {index.classes[label] for label in labels}
    assert [path.split("/")[0] for path in paths] == [index.classes[label] for label in labels]
    return {"said": said}


def test_named_classes_are_in_no_split_of_training() -> None:
    index = make_index()
    divided = hold_out(index, ("washer", "cap"), seed=0)
    assert divided.trained.classes == ("bolt", "nut", "ring")
    assert classes_of(divided.trained)["said"] == {"bolt", "nut", "ring"}
    assert divided.trained.num_images("train") == 18
    assert divided.held_out is not None
    assert divided.held_out.classes == ("cap", "washer")
    assert classes_of(divided.held_out)["said"] == {"cap", "washer"}
    assert divided.held_out.num_images("test") == divided.held_out.num_images() == 20
    assert divided.trained.num_images() + divided.held_out.num_images() == index.num_images()


def test_a_share_is_chosen_by_names_and_seed_whatever_their_order() -> None:
    chosen = hold_out(make_index(), 0.4, seed=0).held_out
    again = hold_out(make_index(NAMES[::-1]), 0.4, seed=0).held_out
    assert chosen is not None
    assert again is not None
    assert len(chosen.classes) == 2
    assert set(again.classes) == set(chosen.classes)
    seeds = {hold_out(make_index(), 0.4, seed).trained.classes for seed in range(10)}
    assert len(seeds) > 1


@pytest.mark.parametrize("nothing", [(), 0.0])
def test_without_any_the_index_stays_as_it_is(nothing: tuple[str, ...] | float) -> None:
    index = make_index()
    divided = hold_out(index, nothing, seed=0)
    assert divided.trained is index
    assert divided.held_out is None


def test_a_name_that_is_no_class_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="is no class of the images; did you mean 'washer'"):
        hold_out(make_index(), ("cap", "wascher"), seed=0)


@pytest.mark.parametrize("wanted", [("cap",), NAMES[:4], 0.2, 0.9])
def test_one_class_alone_on_either_side_is_refused(wanted: tuple[str, ...] | float) -> None:
    with pytest.raises(DataError, match="at least 2 are needed on either side"):
        hold_out(make_index(), wanted, seed=0)


@pytest.mark.parametrize("share", [0.1, 0.01])
def test_a_share_that_comes_to_no_class_is_refused(share: float) -> None:
    """It held out nothing, and the figures of new classes were missing without a word."""
    with pytest.raises(DataError, match=r"0 of 4 classes .* give a share from 0\.5 to 0\.5, or 0"):
        hold_out(make_index(NAMES[:4]), share, seed=0)


def test_what_to_do_is_said_for_names_and_for_few_classes_too() -> None:
    with pytest.raises(DataError, match="name 2 to 3 of them"):
        hold_out(make_index(), ("cap",), seed=0)
    with pytest.raises(DataError, match="there must be 4 to divide"):
        hold_out(make_index(NAMES[:3]), 0.5, seed=0)


def test_a_split_without_two_images_of_a_class_is_refused() -> None:
    index = make_index()
    refuse_lonely(index, "test")
    table = index.table.take([3, 4, 13, 14, 23, 24])  # a validation and a test image of each
    lonely = Index(table, index.classes)
    assert has_pair(index, "validation")
    assert not has_pair(lonely, "validation")
    assert not has_pair(Index(table.slice(0, 0), index.classes), "validation")
    with pytest.raises(DataError, match=r"no class has two test images, .*: 3 images of 5 classes"):
        refuse_lonely(lonely, "test")
