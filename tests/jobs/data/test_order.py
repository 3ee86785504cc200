from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.data.order import (
    MIX_ROWS,
    RUN_ROWS,
    balanced,
    chunk_bounds,
    shard,
    shard_batches,
    shuffled,
    shuffled_runs,
    storage_order,
    weighted,
    whole_batches,
)
from models.errors import DataError

sizes = st.integers(min_value=1, max_value=500)
small = st.integers(min_value=1, max_value=70)


@given(sizes, st.integers(0, 100), st.integers(0, 100))
def test_a_shuffle_is_a_permutation_and_repeats_exactly(rows: int, epoch: int, seed: int) -> None:
    ids = shuffled(rows, epoch, seed)
    assert sorted(ids.tolist()) == list(range(rows))
    assert ids.tolist() == shuffled(rows, epoch, seed).tolist()


def test_another_epoch_or_seed_gives_another_order() -> None:
    orders = {tuple(shuffled(50, epoch, seed)) for epoch in range(3) for seed in range(3)}
    assert len(orders) == 9


@given(rows=sizes, batch_size=small, world=st.integers(1, 5))
def test_every_rank_gets_equally_many_whole_batches(rows: int, batch_size: int, world: int) -> None:
    ids = whole_batches(shuffled(rows, 0, 0), batch_size, world)
    shares = [shard(ids, rank, world) for rank in range(world)]
    assert {len(share) % batch_size for share in shares} == {0}
    assert len({len(share) for share in shares}) == 1
    assert len(shares[0]) >= batch_size


@given(rows=sizes, batch_size=small, world=st.integers(1, 5))
def test_less_than_one_batch_per_rank_is_left_out(rows: int, batch_size: int, world: int) -> None:
    ids = whole_batches(np.arange(rows), batch_size, world)
    left_out = rows - len(set(ids.tolist()))
    assert left_out < batch_size * world
    if rows < batch_size * world:
        assert left_out == 0


@given(rows=sizes, batch_size=small, worlds=st.lists(st.integers(1, 5), min_size=2, max_size=4))
def test_workers_of_any_number_go_on_where_others_stopped(
    rows: int, batch_size: int, worlds: list[int]
) -> None:
    """Each group takes a step and is replaced by one of another size; the last one ends it."""
    order = shuffled(rows, 0, 0)
    seen: list[int] = []
    for world in worlds:
        rest = whole_batches(order, batch_size, world, len(seen))
        steps = [shard_batches(rest, batch_size, rank, world) for rank in range(world)]
        step = [step[:batch_size].tolist() for step in steps]
        if world == worlds[-1]:
            step = [share.tolist() for share in steps]
        seen += [number for share in step for number in share]
    if rows >= batch_size * worlds[0]:
        assert len(seen) == len(set(seen)), "an image twice"
        assert set(seen) == set(order[: len(seen)].tolist()), "an image passed over"
        assert rows - len(seen) < batch_size * worlds[-1]


@given(rows=sizes, world=st.integers(1, 7))
def test_shards_hold_every_row_exactly_once(rows: int, world: int) -> None:
    shares = [shard(np.arange(rows), rank, world).tolist() for rank in range(world)]
    assert sorted(chain.from_iterable(shares)) == list(range(rows))


def test_two_ranks_see_together_what_one_sees_with_twice_the_batch() -> None:
    ids = shuffled(64, 0, 0)
    alone = whole_batches(ids, 16, 1)[:16]
    both = [shard(whole_batches(ids, 8, 2), rank, 2)[:8] for rank in range(2)]
    assert set(alone) == set(np.concatenate(both))


def test_balanced_classes_are_seen_as_often_as_their_weights_say() -> None:
    labels = np.array([0] * 900 + [1] * 90 + [2] * 10)
    seen = np.bincount(labels[balanced(labels, [1, 1, 2], 0, 0)])
    assert seen.tolist() == pytest.approx([250, 250, 500], abs=1)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=200), st.integers(0, 50))
def test_no_image_of_a_class_is_seen_much_more_often_than_another(
    classes: list[int], epoch: int
) -> None:
    labels = np.array(classes)
    ids = balanced(labels, [1.0, 1.0, 1.0, 1.0], epoch, 7)
    assert len(ids) == len(labels)
    times = np.bincount(ids, minlength=len(labels))
    for number in set(classes):
        of_class = times[labels == number]
        assert of_class.max() - of_class.min() <= 1


def test_a_class_of_weight_zero_is_not_seen() -> None:
    labels = np.array([0, 0, 1, 1])
    assert set(labels[balanced(labels, [1, 0], 0, 0)]) == {0}


@pytest.mark.parametrize("weights", [[0, 0], [0, 0, 1], [-1, 1], [float("nan"), 1], [1]])
def test_weights_that_make_no_sense_are_refused(weights: list[float]) -> None:
    with pytest.raises(DataError, match="weights"):
        balanced(np.array([0, 1, 1]), weights, 0, 0)


@given(sizes, small, st.integers(1, 300), st.integers(1, 16))
def test_chunks_cover_all_rows_in_order_and_are_never_too_large(
    rows: int, batch_size: int, largest: int, parallel: int
) -> None:
    bounds = chunk_bounds(rows, batch_size, largest, parallel)
    assert bounds[0] == 0
    assert bounds[-1] == rows
    assert 0 < np.diff(bounds).min() <= np.diff(bounds).max() <= largest


@given(sizes, small, st.integers(1, 16))
def test_chunks_begin_with_a_batch_unless_a_batch_is_larger(
    rows: int, batch_size: int, parallel: int
) -> None:
    bounds = chunk_bounds(rows, batch_size, 70, parallel)
    assert (bounds[:-1] % batch_size == 0).all()


def test_chunks_grow_from_one_batch_and_shrink_again() -> None:
    sizes_of_chunks = np.diff(chunk_bounds(20_000, 32, 256, 4))
    assert sizes_of_chunks[0] == 32
    assert sizes_of_chunks.max() == 256
    assert sizes_of_chunks[-1] <= 32
    assert (sizes_of_chunks == 256).mean() > 0.6


@given(st.integers(0, 3_000), st.integers(0, 5), st.integers(0, 5))
def test_a_shuffle_of_runs_is_a_permutation(rows: int, epoch: int, seed: int) -> None:
    storage = np.random.default_rng(9).permutation(rows)
    order = shuffled_runs(storage, epoch, seed)
    assert sorted(order.tolist()) == list(range(rows))
    assert order.tolist() == shuffled_runs(storage, epoch, seed).tolist()


def test_a_shuffle_of_runs_keeps_neighbours_near_and_mixes_runs() -> None:
    rows = 20 * MIX_ROWS
    storage = np.arange(rows)
    order = shuffled_runs(storage, 0, 0)
    window = order[:MIX_ROWS]
    # So many requests read the window: as many as there are runs in it, and a torn one or two.
    requests = 1 + int((np.diff(np.sort(window)) > 1).sum())
    assert requests <= MIX_ROWS // RUN_ROWS + 2
    # A batch of it has images of many runs, and the runs come from everywhere.
    assert len(set((window[:64] // RUN_ROWS).tolist())) > 20
    assert abs(np.corrcoef(np.arange(rows), order)[0, 1]) < 0.1
    assert shuffled_runs(storage, 1, 0).tolist() != order.tolist()


def test_storage_order_goes_by_container_then_offset() -> None:
    containers, offsets = np.array([1, 0, 1, 0]), np.array([5, 9, 2, 0])
    assert storage_order(containers, offsets).tolist() == [3, 1, 2, 0]


def test_weights_say_how_often_an_image_is_drawn() -> None:
    weights = np.array([0.0, 1.0, 2.0, 1.0] * 250)
    drawn = np.bincount(weighted(weights, 0, 0), minlength=1_000)
    assert drawn[0::4].sum() == 0
    assert drawn[2::4].sum() == pytest.approx(500, abs=2)
    assert drawn.sum() == 1_000
    with pytest.raises(DataError, match="not all 0"):
        weighted(np.zeros(4), 0, 0)


def test_weights_act_within_a_balanced_class() -> None:
    labels = np.array([0] * 900 + [1] * 100)
    weights = np.where(np.arange(1_000) % 2, 3.0, 1.0)
    drawn = balanced(labels, [1.0, 1.0], 0, 0, weights)
    assert (labels[drawn] == 0).sum() == pytest.approx(500, abs=2)
    assert (drawn % 2 == 1).mean() == pytest.approx(0.75, abs=0.02)


@given(st.integers(1, 4), st.integers(1, 16), st.integers(1, 9))
def test_the_batches_of_all_ranks_are_those_of_one(world: int, size: int, steps: int) -> None:
    ids = np.random.default_rng(0).permutation(world * size * steps)
    for step in range(steps):
        group = ids[step * world * size : (step + 1) * world * size]
        mine = [
            shard_batches(ids, size, rank, world)[step * size : (step + 1) * size]
            for rank in range(world)
        ]
        assert np.concatenate(mine).tolist() == group.tolist()
