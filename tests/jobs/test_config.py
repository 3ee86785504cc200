from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

from jobs.config import load_config
from jobs.train.config import TrainConfig
from jobs.yaml12 import Loader
from models.errors import ConfigError


class Optimiser(BaseModel):
    model_config = ConfigDict(extra="forbid")

    lr: float = 0.1
    weight_decay: float | None = None


class Data(BaseModel):
    model_config = ConfigDict(extra="forbid")

    uri: str
    classes: list[str] | None = None
    rename: dict[str, str] = Field(default_factory=dict)
    sizes: list[int] = Field(default_factory=list)


class Run(BaseModel):
    model_config = ConfigDict(extra="forbid")

    data: Data
    epochs: int = 3
    optimiser: Optimiser = Optimiser()
    extra: Optimiser | None = None


SOUND = "data:\n  uri: images\nepochs: 5\noptimiser:\n  lr: 1e-3\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(Run, write(folder, text), overrides)
    return str(caught.value)


def test_a_sound_file_becomes_the_typed_config(tmp_path: Path) -> None:
    run = load_config(Run, write(tmp_path, SOUND))
    assert (run.data.uri, run.epochs, run.optimiser.lr) == ("images", 5, 0.001)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimiser.lr=1e-4", 1e-4),
        ("optimiser.lr=2", 2.0),
        ("optimiser.lr= .5", 0.5),
    ],
)
def test_a_number_in_an_override_is_a_number(
    tmp_path: Path, override: str, expected: float
) -> None:
    assert load_config(Run, write(tmp_path, SOUND), [override]).optimiser.lr == expected


def test_overrides_set_lists_words_sections_and_null_in_their_order(tmp_path: Path) -> None:
    overrides = [
        "data.sizes=[1,2]",
        "data.classes=[no, yes]",
        "extra.lr=3",
        "extra.weight_decay=1",
        "extra.weight_decay=",
        "data.uri=s3://bucket/a=b",
        "epochs=7",
        "epochs=8",
    ]
    run = load_config(Run, write(tmp_path, SOUND), overrides)
    assert run.data.sizes == [1, 2]
    assert run.data.classes == ["no", "yes"]
    assert run.extra == Optimiser(lr=3, weight_decay=None)
    assert run.data.uri == "s3://bucket/a=b"
    assert run.epochs == 8


def test_an_unknown_key_is_answered_with_line_path_value_and_nearest_name(tmp_path: Path) -> None:
    message = refusal(tmp_path, SOUND + "  weigth_decay: 0.3\n")
    assert f"{tmp_path / 'run.yaml'}:6: unknown setting optimiser.weigth_decay = 0.3" in message
    assert "did you mean optimiser.weight_decay?" in message


def test_a_key_in_the_wrong_section_is_answered_with_the_right_one(tmp_path: Path) -> None:
    message = refusal(tmp_path, SOUND + "lr: 0.3\n")
    assert "unknown setting lr = 0.3; did you mean optimiser.lr?" in message


def test_an_unknown_key_unlike_any_other_is_answered_with_what_the_section_knows(
    tmp_path: Path,
) -> None:
    message = refusal(tmp_path, SOUND, "optimiser.zzzzzzzzz=1")
    assert "the command line: unknown setting optimiser.zzzzzzzzz = 1" in message
    assert "optimiser knows lr, weight_decay" in message


def test_a_wrong_type_names_the_place_the_value_and_what_was_expected(tmp_path: Path) -> None:
    message = refusal(tmp_path, SOUND.replace("epochs: 5", "epochs: many"))
    assert f"{tmp_path / 'run.yaml'}:3: epochs = 'many'" in message
    assert "integer" in message


def test_a_wrong_override_is_reported_as_coming_from_the_command_line(tmp_path: Path) -> None:
    message = refusal(tmp_path, SOUND, "optimiser.lr=fast")
    assert message.startswith("the command line: optimiser.lr = 'fast'")


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, "epoch: 5\n", "optimiser.lr=fast")
    assert "unknown setting epoch" in message
    assert "optimiser.lr" in message
    assert "the setting data is missing" in message


def test_a_wrong_element_of_a_list_is_named_by_its_position(tmp_path: Path) -> None:
    assert "data.sizes.1 = 'b'" in refusal(tmp_path, SOUND, "data.sizes=[1, b]")


@pytest.mark.parametrize("override", ["epochs", "=3", "a..b=1", ".epochs=1", "epochs 3"])
def test_a_malformed_override_is_refused_with_an_example(tmp_path: Path, override: str) -> None:
    message = refusal(tmp_path, SOUND, override)
    assert repr(override) in message
    assert "optimiser.lr=1e-3" in message


def test_an_override_below_a_plain_value_is_refused(tmp_path: Path) -> None:
    assert "epochs is 5, which has no settings below it" in refusal(tmp_path, SOUND, "epochs.x=1")


def test_an_override_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    assert "'[1,'" in refusal(tmp_path, SOUND, "data.sizes=[1,")


def test_a_missing_file_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    write(tmp_path, SOUND)
    with pytest.raises(ConfigError, match=r"rum\.yaml does not exist.* has run\.yaml"):
        load_config(Run, tmp_path / "rum.yaml")


def test_invalid_yaml_is_named_with_its_line(tmp_path: Path) -> None:
    assert f"{tmp_path / 'run.yaml'}:3: invalid YAML" in refusal(tmp_path, "a: 1\nb: 2\nc: [1, }\n")


def test_a_list_at_the_top_is_refused(tmp_path: Path) -> None:
    assert "expected settings" in refusal(tmp_path, "- a\n- b\n")


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, "epochs: 3\ndata: {uri: a}\nepochs: 4\n")
    assert ":3: invalid YAML: the key 'epochs' occurs twice" in message


def test_a_python_tag_is_refused(tmp_path: Path) -> None:
    assert "invalid YAML" in refusal(tmp_path, "epochs: !!python/name:os.system\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 0.001),
        ("010", 10),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("2026-11-23", "2026-11-23"),
        ("no", "no"),
        ("On", "On"),
        ("true", True),
        ("~", None),
        ("-.5", -0.5),
        ("1.2.3", "1.2.3"),
    ],
)
def test_yaml_is_read_as_version_1_2_has_it(text: str, expected: object) -> None:
    value = yaml.load(text, Loader=Loader)
    assert value == expected
    assert type(value) is type(expected)


def test_pyyaml_itself_stays_as_it_is_for_others() -> None:
    assert yaml.safe_load("yes") is True


def test_settings_that_contradict_each_other_are_told_without_the_whole_config(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(TrainConfig, None, ["name=x", "data.uri=y", "run=../x", "kind=embedding"])
    assert "'data'" not in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("value", [".inf", ".nan", "-.inf"])
def test_a_rate_that_is_no_number_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="finite number"):
        load_config(TrainConfig, None, ["name=x", "data.uri=y", f"optimiser.lr={value}"])


def test_a_seed_that_no_generator_takes_is_refused() -> None:
    with pytest.raises(ConfigError, match="seed"):
        load_config(TrainConfig, None, ["name=x", "data.uri=y", f"seed={2**32}"])
