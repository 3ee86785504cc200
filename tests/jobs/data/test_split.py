from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.data.split import SPLITS, Split, assign_splits, choose_split, position

digests = st.binary(max_size=8).map(lambda data: hashlib.sha256(data).hexdigest())
seeds = st.integers(min_value=-(2**63), max_value=2**63)
shares = st.tuples(st.floats(min_value=0.0, max_value=0.4), st.floats(min_value=0.0, max_value=0.4))


def many(count: int) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]


@given(digest=digests, seed=seeds)
def test_a_position_lies_in_the_unit_interval_and_never_changes(digest: str, seed: int) -> None:
    assert 0 <= position(digest, seed) < 1
    assert position(digest, seed) == position(digest, seed)


def test_the_place_of_an_image_stays_the_same_in_every_version_of_the_code() -> None:
    # Changing these means that published models were tested on images that are now trained on.
    digest = hashlib.sha256(b"an image").hexdigest()
    assert position(digest, 0) == 0.19145373859266168
    assert position(digest, 1) == 0.7791853508231171


@given(st.lists(digests, max_size=30), st.lists(digests, max_size=30), seeds, shares)
def test_an_image_never_moves_when_the_set_grows(
    before: list[str], added: list[str], seed: int, share: tuple[float, float]
) -> None:
    validation, test = share
    old = assign_splits(before, [None] * len(before), seed, validation=validation, test=test)
    grown = before + added
    new = assign_splits(grown, [None] * len(grown), seed, validation=validation, test=test)
    assert new[: len(old)] == old


@given(st.lists(digests, min_size=1, max_size=30), seeds, shares)
def test_copies_never_lie_on_two_sides(
    contents: list[str], seed: int, share: tuple[float, float]
) -> None:
    twice = contents * 2
    splits = assign_splits(twice, [None] * len(twice), seed, validation=share[0], test=share[1])
    assert splits[: len(contents)] == splits[len(contents) :]


@given(digest=digests, seed=seeds, validation=st.floats(0, 0.3), other=st.floats(0, 0.3))
def test_the_validation_share_moves_nothing_into_or_out_of_test(
    digest: str, seed: int, validation: float, other: float
) -> None:
    first = choose_split(digest, seed, validation=validation, test=0.2)
    second = choose_split(digest, seed, validation=other, test=0.2)
    assert (first == "test") == (second == "test")


def test_the_shares_are_about_what_was_asked_for() -> None:
    splits = assign_splits(many(20_000), [None] * 20_000, 0, validation=0.15, test=0.15)
    counts = Counter(splits)
    # Three standard deviations of a share of 0.15 among 20,000 are 0.0076.
    assert counts["validation"] / 20_000 == pytest.approx(0.15, abs=0.0076)
    assert counts["test"] / 20_000 == pytest.approx(0.15, abs=0.0076)


def test_another_seed_gives_another_split() -> None:
    one = assign_splits(many(200), [None] * 200, 0, validation=0.3, test=0.3)
    two = assign_splits(many(200), [None] * 200, 1, validation=0.3, test=0.3)
    assert one != two


def test_the_splits_of_the_source_are_kept() -> None:
    given_splits = ["train", "validation", "test"] * 10
    assert assign_splits(many(30), given_splits, 0, validation=0.5, test=0.4) == given_splits


@pytest.mark.parametrize(("lacking", "present"), [("validation", "test"), ("test", "validation")])
def test_a_split_that_the_source_lacks_is_carved_out_of_train(
    lacking: Split, present: Split
) -> None:
    given_splits = ["train"] * 8_500 + [present] * 1_500
    splits = assign_splits(many(10_000), given_splits, 0, validation=0.15, test=0.15)
    assert splits[8_500:] == [present] * 1_500
    assert set(splits[:8_500]) == {"train", lacking}
    # 0.15 of all images is 0.15 / 0.85 of the training images.
    assert splits[:8_500].count(lacking) == pytest.approx(1_500, abs=110)


def test_a_source_with_train_only_is_split_three_ways() -> None:
    splits = assign_splits(many(1_000), ["train"] * 1_000, 0, validation=0.15, test=0.15)
    assert set(splits) == set(SPLITS)
    bare = assign_splits(many(1_000), [None] * 1_000, 0, validation=0.15, test=0.15)
    assert splits == bare
