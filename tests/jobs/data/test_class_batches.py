"""Orders in which several images of each class stand side by side."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.data.class_batches import grouped
from jobs.data.order import shard_batches, whole_batches
from models.errors import DataError

LABELS = np.repeat(np.arange(5), [40, 41, 8, 3, 1])


def test_rows_come_in_groups_of_one_class_and_every_image_is_seen() -> None:
    ids = grouped(LABELS, 4, epoch=0, seed=7)
    groups = LABELS[ids].reshape(-1, 4)
    assert (groups == groups[:, :1]).all()
    assert sorted(set(ids.tolist())) == list(range(len(LABELS)))
    # as many as its images fill: 10, 11, 2, 1 and 1
    assert np.bincount(groups[:, 0]).tolist() == [10, 11, 2, 1, 1]
    large = [group for group in ids.reshape(-1, 4) if LABELS[group[0]] < 3]
    assert all(len(set(group.tolist())) == 4 for group in large)


def test_it_is_a_function_of_seed_and_epoch() -> None:
    first = grouped(LABELS, 4, epoch=3, seed=7)
    assert (first == grouped(LABELS, 4, epoch=3, seed=7)).all()
    assert (first != grouped(LABELS, 4, epoch=4, seed=7)).any()
    assert (first != grouped(LABELS, 4, epoch=3, seed=8)).any()


def test_two_ranks_see_together_what_one_sees_and_groups_stay_whole() -> None:
    ids = grouped(LABELS, 4, epoch=0, seed=0)
    one = shard_batches(whole_batches(ids, 16, 1), 16, 0, 1).reshape(-1, 16)
    two = [shard_batches(whole_batches(ids, 8, 2), 8, rank, 2).reshape(-1, 8) for rank in (0, 1)]
    assert len(two[0]) == len(two[1])
    assert (np.concatenate(two, axis=1) == one).all()
    for mine in two:
        groups = LABELS[mine].reshape(-1, 4)
        assert (groups == groups[:, :1]).all()


def test_groups_of_a_class_are_spread_over_the_epoch() -> None:
    labels = np.repeat(np.arange(10), 40)
    batches = labels[grouped(labels, 4, epoch=0, seed=0)].reshape(-1, 20)
    # ten classes in turn: of the five groups of a batch hardly two are of one class
    assert np.mean([len(set(batch.tolist())) for batch in batches]) > 4.5
    assert min(len(set(batch.tolist())) for batch in batches) >= 3


def test_even_classes_have_equally_many_groups() -> None:
    groups = LABELS[grouped(LABELS, 4, epoch=0, seed=0, is_even=True)].reshape(-1, 4)
    assert np.bincount(groups[:, 0]).tolist() == [5, 5, 5, 5, 5]


def test_images_are_drawn_by_their_weights() -> None:
    weights = np.ones(len(LABELS))
    weights[:20] = 0
    weights[20] = 6
    ids = grouped(LABELS, 4, epoch=0, seed=0, weights=weights)
    counts = np.bincount(ids, minlength=len(LABELS))
    assert not counts[:20].any()
    assert counts[20] >= 5
    with pytest.raises(DataError, match="not all 0"):
        grouped(LABELS, 4, epoch=0, seed=0, weights=np.zeros(len(LABELS)))
