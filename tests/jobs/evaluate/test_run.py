"""Which images are judged, and that two models are asked about the same."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.data.index import Index
from jobs.evaluate.outputs import Outputs
from jobs.evaluate.run import choose_images, on_both
from models.errors import DataError
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


def test_images_that_only_one_of_two_models_could_read_are_left_out() -> None:
    def outputs(rows: list[int]) -> Outputs:
        probabilities = np.array([[row / 10, 1 - row / 10] for row in rows], np.float32)
        numbers = np.array(rows, np.int64)
        return Outputs(probabilities, numbers * 0, numbers, numbers.astype(np.float32), "engine")

    one, other = on_both(outputs([0, 1, 3, 4]), outputs([1, 2, 3]))
    assert one.rows.tolist() == other.rows.tolist() == [1, 3]
    np.testing.assert_allclose(one.probabilities[:, 0], [0.1, 0.3])
    np.testing.assert_allclose(one.brightness, [1, 3])
