"""Search spaces: what they may say, and the trials that come of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.config import load_config
from jobs.train.config import TrainConfig
from jobs.tune.config import TuneConfig
from jobs.tune.space import Trial, check_base, check_space, draw_trials
from models.errors import ConfigError

BASE = """
name: caps
data: {uri: images}
epochs: 6
"""


def load(folder: Path, *overrides: str, space: str = "") -> tuple[TuneConfig, TrainConfig]:
    """Return a search, and the training that it differs from."""
    (folder / "base.yaml").write_text(BASE)
    file = folder / "tune.yaml"
    file.write_text(f"name: search\nbase: {folder / 'base.yaml'}\n{space}")
    config = load_config(TuneConfig, file, overrides)
    check_space(config, [], str(file))
    return config, load_config(TrainConfig, config.base)


def draw(folder: Path, *overrides: str, space: str = "") -> list[Trial]:
    """Return the trials of a search."""
    return draw_trials(*load(folder, *overrides, space=space))


ALL_KINDS = """
trials: 40
space:
  optimiser.lr: {loguniform: [1e-4, 1e-1]}
  optimiser.weight_decay: {uniform: [0, 2]}
  preprocess.height, preprocess.width: {choice: [160, 224]}
  network.num_views: {int_range: [1, 3]}
  network.freeze: backbone
"""


def test_every_kind_of_range_reaches_the_training(tmp_path: Path) -> None:
    trials = draw(tmp_path, space=ALL_KINDS)
    assert [trial.number for trial in trials] == list(range(1, 41))
    configs = [trial.config for trial in trials]
    rates = sorted(config.optimiser.lr for config in configs)
    assert rates[0] < 3e-4
    assert rates[-1] > 3e-2
    assert 1e-3 < rates[20] < 1e-2, "as many below as above the middle of a logarithmic range"
    assert {config.network.num_views for config in configs} == {1, 2, 3}
    assert {config.preprocess.height for config in configs} == {160, 224}
    assert all(config.preprocess.height == config.preprocess.width for config in configs)
    assert {config.network.freeze for config in configs} == {"backbone"}
    assert min(config.optimiser.weight_decay for config in configs) < 0.3
    assert max(config.optimiser.weight_decay for config in configs) > 1.7


def test_a_longer_sweep_begins_with_the_trials_of_a_shorter_one(tmp_path: Path) -> None:
    whole = draw(tmp_path, space=ALL_KINDS)
    assert draw(tmp_path, "trials=7", space=ALL_KINDS) == whole[:7]
    assert draw(tmp_path, "trials=7", "seed=1", space=ALL_KINDS) != whole[:7]


def test_a_space_with_few_points_gives_each_once(tmp_path: Path) -> None:
    trials = draw(tmp_path, space="space: {balance: {choice: [none, weights, sampling]}}\n")
    assert sorted(trial.config.balance for trial in trials) == ["none", "sampling", "weights"]


def test_points_that_contradict_themselves_are_passed_over(tmp_path: Path) -> None:
    trials = draw(
        tmp_path,
        "trials=12",
        space=(
            "space:\n  preprocess.height: {choice: [160, 224]}\n"
            "  preprocess.width: {choice: [160, 224]}\n  augment.right_angles: true\n"
            "  optimiser.lr: {loguniform: [1e-4, 1e-2]}\n"
        ),
    )
    assert len(trials) == 12
    assert all(t.config.preprocess.height == t.config.preprocess.width for t in trials)
    assert [trial.number for trial in trials] == list(range(1, 13))


def test_a_space_of_contradictions_alone_is_refused(tmp_path: Path) -> None:
    space = (
        "space:\n  preprocess.height: 160\n  preprocess.width: {choice: [192, 224]}\n"
        "  augment.right_angles: true\n"
    )
    with pytest.raises(ConfigError, match=r"every point of the space contradicts itself.*square"):
        draw(tmp_path, space=space)


def test_the_command_line_adds_to_the_space(tmp_path: Path) -> None:
    config, _ = load(
        tmp_path,
        "space.optimiser.lr={loguniform: [1e-5, 1e-3]}",
        "space.batch_size=8",
        space=ALL_KINDS.replace("  optimiser.lr: {loguniform: [1e-4, 1e-1]}\n", ""),
    )
    assert config.space["optimiser.lr"].loguniform == (1e-5, 1e-3)
    assert config.space["batch_size"].is_fixed


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            "optimiser.lrr: {uniform: [1, 2]}",
            r"tune.yaml: unknown setting optimiser\.lrr.*mean opt",
        ),
        ("batch_siz: 4\n  epochs: {choice: [1, 2]}", r"batch_siz = 4; did you mean batch_size"),
        ("batch_size: {choice: [1, 8]}", r"batch_size = 1: .*greater than or equal to 2"),
        ("optimiser.lr: {uniform: [2, 1]}", r"range \[2\.0, 1\.0\] must be finite and rise"),
        ("optimiser.lr: {loguniform: [0, 1]}", "begins above 0"),
        ("optimiser.lr: {uniform: [0, 1], choice: [1]}", "exactly one of"),
        ("optimiser.lr: {choise: [1]}", "choice"),
        ("epochs: {int_range: [1.5, 3]}", "int_range"),
        ("epochs: {choice: []}", "at least 1 item"),
        ("epochs: 5", "nothing to try"),
        (
            "data.uri: {choice: [a, b]}",
            r"data\.uri, but the images are read once.*train\.data\.uri",
        ),
        ("monitor: {choice: [loss, accuracy]}", "trials are compared by it"),
        ("epochs: {choice: [1, 2]}\n  'epochs, batch_size': 4", "epochs twice"),
    ],
)
def test_mistakes_in_a_space_are_named(tmp_path: Path, space: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, space=f"space:\n  {space}\n")


def test_embeddings_are_refused_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match=r"base\.yaml: kind: embedding cannot be searched yet"):
        check_base(
            TrainConfig.model_validate({"name": "x", "kind": "embedding", "data": {"uri": "."}}),
            "base.yaml",
        )


@pytest.mark.parametrize("name", ["a b", "features", "x" * 91, "../up"])
def test_a_name_that_is_no_folder_of_its_own_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="must be a name"):
        load(tmp_path, f"name={json.dumps(name)}", space="space: {epochs: {choice: [1, 2]}}\n")


@pytest.mark.parametrize("file", ["fast", "full"])
def test_the_configurations_that_come_along_are_sound(file: str) -> None:
    path = Path(__file__).parents[3] / "configs" / "tune" / f"{file}.yaml"
    config = load_config(TuneConfig, path, [f"base={path.parents[1] / 'train' / 'fast.yaml'}"])
    check_space(config, ["data.uri=images"], str(path))
    base = load_config(TrainConfig, config.base)
    assert len(draw_trials(config, base)) == config.trials
