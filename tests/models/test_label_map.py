"""The algebra of label maps: what every edit keeps, and what it refuses."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import EditError, LabelMapError
from models.label_edits import (
    Alias,
    Edit,
    Hide,
    Merge,
    Rename,
    Restore,
    SetThreshold,
    SplitBack,
    apply_edits,
    parse_edits,
)
from models.label_map import LabelMap, Reading, check_map, identity_map, lookalikes
from models.labels import OutputClass

CLASSES = tuple(OutputClass(id=each, name=each.upper()) for each in "abcde")
BASE = identity_map(CLASSES)
EVEN = np.array([0.3, 0.25, 0.2, 0.15, 0.1], np.float32)

names = st.one_of(st.sampled_from("ABCDEabcdeXY"), st.text(max_size=5))
words = st.sampled_from([*"abcde", *"ABCDE", "x"])
edits: st.SearchStrategy[Edit] = st.one_of(
    st.builds(Rename, label=words, name=names, keep_alias=st.booleans()),
    st.builds(Merge, labels=st.lists(words, min_size=1, max_size=3).map(tuple), into=words),
    st.builds(SplitBack, label=words),
    st.builds(Hide, label=words),
    st.builds(Restore, label=words),
    st.builds(Alias, label=words, add=st.lists(names, max_size=2).map(tuple)),
    st.builds(
        SetThreshold,
        label=st.one_of(st.none(), words),
        threshold=st.one_of(st.none(), st.floats(0, 1)),
    ),
)


def edited(*some: Edit, base: LabelMap = BASE) -> LabelMap:
    """Apply edits in one revision."""
    return apply_edits(base, some, CLASSES)


def label_of(label_map: LabelMap, probabilities: npt.ArrayLike) -> str:
    """Return the answer for one row of probabilities."""
    row = np.array(probabilities, np.float32)
    return Reading(label_map, CLASSES, 1).read(row, scores="none").label


@given(st.lists(st.lists(edits, max_size=4), max_size=6))
def test_whatever_is_done_the_map_stays_sound_and_no_probability_is_lost(
    revisions: list[list[Edit]],
) -> None:
    current = BASE
    for revision in revisions:
        try:
            current = apply_edits(current, revision, CLASSES)
        except LabelMapError:
            continue
        check_map(current, CLASSES)
        assert {label.id for label in current.labels} == set("abcde")  # no id is lost or made
        reading = Reading(current, CLASSES, 1)
        assert reading.sums(EVEN).sum() == pytest.approx(EVEN.sum(), abs=1e-6)
        answer = reading.read(EVEN, scores="all")
        assert LabelMap.model_validate_json(current.model_dump_json()) == current
        assert answer.label == current.unknown or answer.label == answer.scores[0].label


def test_two_names_are_swapped_in_one_revision() -> None:
    swapped = edited(Rename(label="A", name="B"), Rename(label="B", name="A"))
    assert [label.name for label in swapped.labels] == ["B", "A", "C", "D", "E"]
    assert label_of(swapped, EVEN) == "B"  # output a, by its id


def test_a_merge_sums_and_a_split_back_undoes_it() -> None:
    merged = edited(Merge(labels=("B", "c"), into="D"))
    assert label_of(merged, EVEN) == "D"
    reading = Reading(merged, CLASSES, 1).read(EVEN, scores="all")
    assert reading.confidence == pytest.approx(0.6)
    assert [score.label for score in reading.scores] == ["D", "A", "E"]
    back = edited(SplitBack(label="b"), SplitBack(label="C"), base=merged)
    assert back == BASE


def test_a_label_comes_back_out_of_a_chain_of_merges() -> None:
    chain = edited(Merge(labels=("a",), into="b"), Merge(labels=("b",), into="c"))
    assert chain.by_id["c"].outputs == ("c", "b", "a")
    first = edited(SplitBack(label="a"), base=chain)
    assert first.by_id["a"].outputs == ("a",)
    assert first.by_id["c"].outputs == ("c", "b")
    both = edited(SplitBack(label="b"), base=first)
    assert both == BASE
    whole = edited(SplitBack(label="b"), base=chain)
    assert whole.by_id["b"].outputs == ("b", "a")
    assert edited(SplitBack(label="a"), base=whole) == BASE


def test_a_hidden_winner_is_unknown_and_never_the_runner_up() -> None:
    hidden = edited(Hide(label="A"))
    answer = Reading(hidden, CLASSES, 1).read(EVEN)
    assert answer.label == "unknown"
    assert answer.confidence == pytest.approx(0.3)
    assert [score.label for score in answer.scores] == ["B", "C", "D", "E"]
    assert label_of(hidden, [0.1, 0.6, 0.1, 0.1, 0.1]) == "B"
    assert edited(Restore(label="A"), base=hidden) == BASE


def test_the_last_active_label_cannot_be_hidden() -> None:
    with pytest.raises(LabelMapError, match="no label is active"):
        edited(*(Hide(label=each) for each in "abcde"))


def test_a_threshold_of_a_label_goes_before_that_of_the_map() -> None:
    strict = edited(SetThreshold(threshold=0.5))
    assert label_of(strict, EVEN) == "unknown"
    assert label_of(strict, [0.6, 0.4, 0, 0, 0]) == "A"
    lenient = edited(SetThreshold(label="a", threshold=0.0), base=strict)
    assert label_of(lenient, EVEN) == "A"
    assert edited(SetThreshold(label="a", threshold=None), base=lenient) == strict


def test_a_map_is_bound_to_outputs_by_id_and_not_by_place() -> None:
    renamed = edited(Rename(label="a", name="first"))
    turned = CLASSES[::-1]
    check_map(renamed, turned)
    answer = Reading(renamed, turned, 1).read(EVEN[::-1].copy(), scores="none")
    assert answer.label == "first"


def test_a_map_of_another_model_is_refused() -> None:
    with pytest.raises(LabelMapError, match="other outputs"):
        Reading(BASE, CLASSES[:4], 1)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (Rename(label="a", name="b"), "is a name of label 'b' and of label 'a'"),
        # full width, folded the same
        (Rename(label="a", name="\N{FULLWIDTH LATIN CAPITAL LETTER B}"), "is a name of label"),
        (Rename(label="a", name="Unknown"), "the answer for what is not known"),
        (Rename(label="a", name=" a"), "begins or ends with a space"),
        (Rename(label="a", name="a\x00b"), "do not print"),
        (Rename(label="a", name=""), "1 to 200 characters, got 0"),
        (Rename(label="a", name="x" * 201), "got 201"),
        (Rename(label="a", name="A"), "change nothing"),
        (Rename(label="bb", name="X"), "no label 'bb'; did you mean 'B'?"),
        (Merge(labels=("a",), into="A"), "merged into itself"),
        (Merge(labels=("a", "a"), into="b"), "label 'A' is retired"),
        (SplitBack(label="a"), "is active; expected retired"),
        (Restore(label="a"), "is active; expected hidden"),
        (Alias(label="a", add=("B",)), "is a name of label"),
        (Alias(label="a", add=("x", "X")), "has a name twice"),
        (Alias(label="a", remove=("x",)), "has no alias 'x'"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(edit: Edit, told: str) -> None:
    with pytest.raises(LabelMapError) as caught:
        edited(edit)
    assert told in str(caught.value)


def test_every_edit_that_cannot_be_done_is_told() -> None:
    with pytest.raises(EditError) as caught:
        edited(Hide(label="a"), Hide(label="nobody"), Hide(label="b"), Restore(label="c"))
    assert sorted(caught.value.reasons) == [1, 3]


def test_edits_that_are_no_edits_are_told_by_position() -> None:
    with pytest.raises(EditError) as caught:
        parse_edits([{"op": "hide", "label": "a"}, {"op": "hid"}, {"op": "rename", "label": 5}, 7])
    assert sorted(caught.value.reasons) == [1, 2, 3]
    with pytest.raises(EditError):
        parse_edits("hide")
    assert parse_edits([{"op": "merge", "labels": ["a"], "into": "b"}]) == (
        Merge(labels=("a",), into="b"),
    )


def test_a_label_is_found_by_id_name_or_alias_and_a_living_one_first() -> None:
    changed = edited(
        Rename(label="b", name="Bolt", keep_alias=True), Merge(labels=("c",), into="d")
    )
    changed = edited(Rename(label="e", name="C"), base=changed)
    assert changed.find("\N{FULLWIDTH LATIN SMALL LETTER B}olt").id == "b"
    assert changed.find("B").id == "b"
    assert changed.find("C").id == "e"
    assert changed.find("c").id == "c"


def test_letters_of_another_alphabet_are_flagged() -> None:
    assert lookalikes(BASE) == []
    spoofed = edited(Rename(label="a", name="g\N{CYRILLIC SMALL LETTER O}od"))
    assert "Cyrillic, Latin" in lookalikes(spoofed)[0]
    assert lookalikes(edited(Rename(label="a", name="хорошо"))) == []
