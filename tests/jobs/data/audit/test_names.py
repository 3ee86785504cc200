from __future__ import annotations

from pathlib import Path

import pytest

from jobs.data.audit.findings import Finding
from jobs.data.audit.names import check_names, check_orientation, load_synonyms, plain
from jobs.data.transforms import AugmentConfig
from models.errors import ConfigError

SYNONYMS = load_synonyms()


def found(*names: str) -> dict[str, str]:
    """Return the kinds of finding about names, by what is said."""
    return {one.kind: one.detail for one in check_names(names, SYNONYMS)}


@pytest.mark.parametrize("other", ["OK", "ok ", "ｏｋ", "Ok"])  # noqa: RUF001
def test_names_that_training_refuses_are_errors(other: str) -> None:
    (one,) = check_names(["ok", other], SYNONYMS)
    assert one.kind == "same_name"
    assert one.severity == "error"
    assert repr(other) in one.detail


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        ("not_ok", "not ok", "the eye"),
        ("not-ok", "notok", "the eye"),
        ("scratch", "sсratch", "the eye"),  # a Cyrillic с  # noqa: RUF001
        ("Kratzer", "Krätzer", "the eye"),
        ("good", "ok", "mean the same"),
        ("NOK", "reject", "mean the same"),
        ("empty", "absent", "mean the same"),
        ("discoloured", "discolored", "spelt"),
        ("brocken", "broken", "spelt"),
        ("contaminatoin", "contamination", "spelt"),
    ],
)
def test_names_that_may_be_one_label_are_warnings(one: str, other: str, why: str) -> None:
    findings = found(one, other)
    assert set(findings) == {"similar_name"}
    assert why in findings["similar_name"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("type a", "type b"),
        ("m10", "m12"),
        ("bolt 1", "bolt 10"),
        ("shirt", "skirt"),
        ("cat", "car"),
        ("loaded", "unloaded"),
        ("even", "uneven"),
        ("defective", "non defective"),
        ("good", "defective"),
        ("left", "right"),
    ],
)
def test_names_of_two_classes_are_left_alone(one: str, other: str) -> None:
    assert found(one, other) == {}


def test_near_same_names_planted_among_many_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    sound = [f"{part} {number}" for part in ("bolt", "nut", "washer", "seal") for number in "1234"]
    sound += ["upright", "tilted", "scratch", "dent", "crack", "left", "right", "defective"]
    planted = {
        "upright": "Upright", "tilted": "tilted ", "scratch": "scrach", "dent": "d\u0435nt",
        "crack": "crack_", "bolt 1": "Bolt_1", "defective": "NG", "seal 4": "SEAL 4",
    }  # fmt: skip
    findings = check_names([*sound, *planted.values()], SYNONYMS)
    told = [one.detail for one in findings if one.kind in ("same_name", "similar_name")]

    def tells(detail: str, name: str) -> bool:
        return repr(name) in detail and repr(planted[name]) in detail

    hits = {name for name in planted if any(tells(detail, name) for detail in told)}
    right = [detail for detail in told if any(tells(detail, name) for name in planted)]
    recall, precision = len(hits) / len(planted), len(right) / len(told)
    with capsys.disabled():
        print(f"\nnames: {len(planted)} planted, {len(told)} found, ", end="")
        print(f"precision {precision:.2f}, recall {recall:.2f}", end=" ")
    assert recall == 1.0, sorted(set(planted) - hits)
    assert precision == 1.0, told


@pytest.mark.parametrize("name", ["not sure", "Not_Sure", "other", "skip", "N/A", "???", "unknown"])
def test_labels_that_are_no_class_are_told_of(name: str) -> None:
    assert "unclear_label" in found("good", name)


def test_a_users_synonyms_are_added(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("- [Ausschuss, Makulatur]\n")
    mine = load_synonyms(str(tmp_path / "mine.yaml"))
    assert [one.kind for one in check_names(["ausschuss", "makulatur"], mine)] == ["similar_name"]
    assert [one.kind for one in check_names(["ok", "good"], mine)] == ["similar_name"]


@pytest.mark.parametrize("text", ["ok: good", "- ok", "[", "\x00"])
def test_a_synonyms_file_of_another_form_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"audit\.synonyms .*mine\.yaml"):
        load_synonyms(str(tmp_path / "mine.yaml"))


def test_of_very_many_labels_those_are_compared_that_look_the_same() -> None:
    names = [f"label {'x' * (n % 50)} {n}" for n in range(3000)]
    findings = list(check_names([*names, "not ok", "not_ok"], SYNONYMS))
    assert [one.kind for one in findings] == ["similar_name"]


def test_plain_drops_what_nobody_sees() -> None:
    assert plain(" N.i.O. ") == "n i o"
    assert plain("Überhitzt__2") == "uberhitzt 2"


def oriented(*names: str, **augment: object) -> list[Finding]:
    return list(check_orientation(names, AugmentConfig.model_validate(augment)))


def test_labels_that_say_which_way_up_are_told_of() -> None:
    assert [one.kind for one in oriented("upright", "tilted")] == ["orientation"]
    assert [one.kind for one in oriented("cap left", "cap right")] == ["orientation"]
    assert oriented("good", "defective", horizontal_flip=True) == []
    assert oriented("top", "dress", vertical_flip=True) == []


@pytest.mark.parametrize(
    ("names", "augment"),
    [
        (("left", "right"), {"horizontal_flip": True}),
        (("upright", "tilted"), {"rotate_degrees": 30}),
        (("up", "down"), {"vertical_flip": True}),
        (("landscape", "portrait"), {"right_angles": True}),
    ],
)
def test_an_augmentation_that_destroys_them_is_an_error(
    names: tuple[str, str], augment: dict[str, object]
) -> None:
    (one,) = oriented(*names, **augment)
    assert one.severity == "error"
    assert f"augment.{next(iter(augment))}" in one.detail


def test_an_augmentation_that_leaves_them_true_is_no_error() -> None:
    (one,) = oriented("up", "down", horizontal_flip=True)
    assert one.severity == "info"
