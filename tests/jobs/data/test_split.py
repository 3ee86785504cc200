from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.data.config import SplitConfig
from jobs.data.split import SPLITS, Split, assign_splits, choose_split, position

digests = st.binary(max_size=8).map(lambda data: hashlib.sha256(data).hexdigest())
seeds = st.integers(min_value=0, max_value=2**63 - 1)
shares = st.tuples(st.floats(min_value=0.0, max_value=0.4), st.floats(min_value=0.0, max_value=0.4))


def assign(
    contents: list[str],
    given_splits: Sequence[str | None] | None = None,
    *,
    validation: float = 0.15,
    test: float = 0.15,
    seed: int = 0,
    labels: Sequence[int] | None = None,
    groups: Sequence[str | None] | None = None,
    stratify: bool = False,
) -> list[Split]:
    """Assign splits; without labels all images are of one class."""
    config = SplitConfig(
        train=1 - validation - test,
        validation=validation,
        test=test,
        seed=seed,
        stratify=stratify,
    )
    none = [None] * len(contents)
    numbers = np.array(labels if labels is not None else [0] * len(contents), dtype=np.int32)
    return assign_splits(contents, numbers, given_splits or none, groups or none, config)


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
def test_unstratified_an_image_never_moves_when_the_set_grows(
    before: list[str], added: list[str], seed: int, share: tuple[float, float]
) -> None:
    validation, test = share
    old = assign(before, seed=seed, validation=validation, test=test)
    new = assign(before + added, seed=seed, validation=validation, test=test)
    assert new[: len(old)] == old


@given(st.lists(digests, min_size=1, max_size=30), seeds, shares, st.booleans())
def test_copies_never_lie_on_two_sides(
    contents: list[str], seed: int, share: tuple[float, float], stratify: bool
) -> None:
    # The copies have other labels, too.
    labels = [number % 3 for number in range(2 * len(contents))]
    splits = assign(
        contents * 2,
        seed=seed,
        validation=share[0],
        test=share[1],
        labels=labels,
        stratify=stratify,
    )
    assert splits[: len(contents)] == splits[len(contents) :]


@given(digest=digests, seed=seeds, validation=st.floats(0, 0.3), other=st.floats(0, 0.3))
def test_the_validation_share_moves_nothing_into_or_out_of_test(
    digest: str, seed: int, validation: float, other: float
) -> None:
    first = choose_split(digest, seed, validation=validation, test=0.2)
    second = choose_split(digest, seed, validation=other, test=0.2)
    assert (first == "test") == (second == "test")


def test_the_shares_are_about_what_was_asked_for() -> None:
    splits = assign(many(20_000))
    counts = Counter(splits)
    # Three standard deviations of a share of 0.15 among 20,000 are 0.0076.
    assert counts["validation"] / 20_000 == pytest.approx(0.15, abs=0.0076)
    assert counts["test"] / 20_000 == pytest.approx(0.15, abs=0.0076)


def test_another_seed_gives_another_split() -> None:
    one = assign(many(200), validation=0.3, test=0.3)
    two = assign(many(200), seed=1, validation=0.3, test=0.3)
    assert one != two


def test_the_splits_of_the_source_are_kept() -> None:
    given_splits = ["train", "validation", "test"] * 10
    assert assign(many(30), given_splits, validation=0.5, test=0.4) == given_splits


@pytest.mark.parametrize(("lacking", "present"), [("validation", "test"), ("test", "validation")])
def test_a_split_that_the_source_lacks_is_carved_out_of_train(
    lacking: Split, present: Split
) -> None:
    given_splits = ["train"] * 8_500 + [present] * 1_500
    splits = assign(many(10_000), given_splits)
    assert splits[8_500:] == [present] * 1_500
    assert set(splits[:8_500]) == {"train", lacking}
    # 0.15 of all images is 0.15 / 0.85 of the training images.
    assert splits[:8_500].count(lacking) == pytest.approx(1_500, abs=110)


def test_a_source_with_train_only_is_split_three_ways() -> None:
    splits = assign(many(1_000), ["train"] * 1_000)
    assert set(splits) == set(SPLITS)
    bare = assign(many(1_000))
    assert splits == bare


def test_stratified_every_class_gets_its_shares_to_the_image() -> None:
    sizes = [1_000, 100, 20, 4, 3, 1]
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    splits = assign(many(len(labels)), labels=labels, stratify=True)
    counts = [
        [splits[row] for row, label in enumerate(labels) if label == number].count("test")
        for number in range(len(sizes))
    ]
    assert counts == [150, 15, 3, 1, 0, 0]


@given(st.lists(digests, min_size=8, max_size=60, unique=True), seeds)
def test_stratified_few_images_move_when_the_set_grows_by_one(
    contents: list[str], seed: int
) -> None:
    old = assign(contents[:-1], seed=seed, stratify=True)
    new = assign(contents, seed=seed, stratify=True)
    # Each of the two cuts moves by one place for the new image, and by one as shares are rounded.
    assert sum(a != b for a, b in zip(old, new, strict=False)) <= 4


@given(seeds, st.booleans())
def test_a_group_stays_on_one_side(seed: int, stratify: bool) -> None:
    groups = [f"part {number // 5}" for number in range(300)]
    labels = [number % 2 for number in range(300)]
    splits = assign(many(300), seed=seed, labels=labels, groups=groups, stratify=stratify)
    by_group: dict[str, set[Split]] = {group: set() for group in groups}
    for group, split in zip(groups, splits, strict=True):
        by_group[group].add(split)
    assert all(len(sides) == 1 for sides in by_group.values())
    assert set(splits) == set(SPLITS)


pairs = st.lists(
    st.tuples(st.integers(0, 12), st.none() | st.integers(0, 6).map(str)), min_size=1, max_size=40
)


@given(pairs, seeds, st.booleans(), shares)
def test_copies_and_groups_that_they_link_lie_on_one_side(
    images: list[tuple[int, str | None]], seed: int, stratify: bool, share: tuple[float, float]
) -> None:
    contents = [many(13)[number] for number, _ in images]
    groups = [group for _, group in images]
    splits = assign(
        contents,
        seed=seed,
        validation=share[0],
        test=share[1],
        groups=groups,
        stratify=stratify,
    )
    sides: dict[str, set[Split]] = {}
    for content, group, split in zip(contents, groups, splits, strict=True):
        sides.setdefault(content, set()).add(split)
        if group is not None:
            sides.setdefault(f"group {group}", set()).add(split)
    assert all(len(found) == 1 for found in sides.values())


def test_groups_that_copies_link_have_their_share_of_every_split() -> None:
    # Two groups of one image each, and the same image in both.
    contents = [digest for digest in many(6_000) for _ in range(2)]
    groups = [f"part {number}" for number in range(12_000)]
    counts = Counter(assign(contents, groups=groups))
    assert counts["test"] / 12_000 == pytest.approx(0.15, abs=0.014)  # three deviations
    assert counts["validation"] / 12_000 == pytest.approx(0.15, abs=0.014)


@pytest.mark.parametrize("side", SPLITS)
def test_an_image_without_a_split_goes_where_its_copies_and_its_group_are(side: Split) -> None:
    given_splits: list[str | None] = [side, *[None] * 9, side, *[None] * 9, *SPLITS, *[None] * 60]
    groups = ["p7"] * 10 + [None] * 10 + [None] * 63
    contents = [*many(11), *[many(11)[10]] * 9, *many(100)[37:]]
    splits = assign(contents, given_splits, groups=groups)
    assert splits[:20] == [side] * 20
    assert set(splits[23:]) == set(SPLITS), "the others are split by their content"


def test_four_groups_give_one_to_every_split() -> None:
    groups = [f"part {number // 10}" for number in range(40)]
    for seed in range(20):
        splits = assign(many(40), seed=seed, groups=groups, stratify=True)
        assert Counter(splits) == {"train": 20, "validation": 10, "test": 10}


def test_a_set_that_was_split_before_is_not_carved() -> None:
    given_splits = ["train"] * 80 + ["validation"] * 20
    none = [None] * 100
    labels = np.zeros(100, np.int32)
    assert assign_splits(many(100), labels, given_splits, none, SplitConfig(), carves=False) == (
        given_splits
    )
    assert "test" in assign_splits(many(100), labels, given_splits, none, SplitConfig())
