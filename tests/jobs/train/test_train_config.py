"""The configurations that ship are loadable, with the overrides that the manifests and docs use."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from jobs.config import load_config
from jobs.submitted import refuse_lost_results
from jobs.train.config import TrainConfig, with_absolute_paths, written_by
from models.errors import ConfigError
from tests.jobs.train.test_loop import make_config

ROOT = Path(__file__).parent.parent.parent.parent
CONFIGS = sorted((ROOT / "configs" / "train").glob("*.yaml"))
RAY_JOB = ROOT / "kubernetes" / "base" / "train" / "ray-job.yaml"
KUSTOMIZATION = RAY_JOB.with_name("kustomization.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_is_valid(path: Path) -> None:
    assert load_config(TrainConfig, path, []).name == path.stem


def test_the_ray_job_trains_with_a_shipped_configuration_and_known_overrides() -> None:
    entrypoint = yaml.safe_load(RAY_JOB.read_text())["spec"]["entrypoint"]
    python, flag, module, config, *overrides = shlex.split(entrypoint)
    assert (python, flag, module) == ("python", "-m", "jobs.train")
    (generated,) = yaml.safe_load(KUSTOMIZATION.read_text())["configMapGenerator"]
    values = dict(literal.split("=", 1) for literal in generated["literals"])
    filled = [Template(override).substitute(values) for override in overrides]
    loaded = load_config(TrainConfig, ROOT / config, filled)
    assert loaded.store.startswith("s3://")
    assert loaded.runs.startswith("s3://")
    assert loaded.run == values["SIGHTLINE_RUN"], "so that one applied again goes on"


@pytest.mark.parametrize("key", ["store", "runs", "data.uri"])
def test_a_submitted_job_refuses_results_in_the_copy_that_ray_removes(key: str) -> None:
    unpacked = Path("/tmp/ray/session/runtime_resources/working_dir_files/_ray_pkg_1")
    given = {"store": "s3://b/models", "runs": "/shared/runs", "data.uri": "s3://b/data"}
    overrides = [f"{name}={uri}" for name, uri in given.items() if name != key]
    config = load_config(TrainConfig, ROOT / "configs/train/elpv.yaml", overrides)
    with pytest.raises(ConfigError, match=f"^{key} is the relative path"):
        refuse_lost_results(written_by(config), unpacked)
    refuse_lost_results(written_by(config), ROOT)


def test_right_angles_need_a_square_input() -> None:
    overrides = ["augment.right_angles=true", "preprocess.height=192", "preprocess.width=224"]
    with pytest.raises(ConfigError, match="square input"):
        load_config(TrainConfig, ROOT / "configs/train/clothing.yaml", overrides)


CONTRADICTIONS = {
    "network.weights_sha256=" + "ab" * 32: "network.weights is 'package'",
    "network.weights_sha256=abc": "64 hexadecimal digits",
    "network.freeze=backbone network.head_epochs=2": "set network.freeze: none",
    "network.head_epochs=12": "leaves none of 12 epochs for the backbone",
    "optimiser.momentum=0.5": "set optimiser.kind: sgd",
    "optimiser.nesterov=true": "set optimiser.kind: sgd",
    "optimiser.kind=sgd optimiser.momentum=0 optimiser.nesterov=true": "needs optimiser.momentum",
    "optimiser.warmup_epochs=13": "longer than the run of 12 epochs",
    "loss.gamma=1": "belongs to loss.kind: focal",
    "loss.tau=1": "belongs to loss.kind: logit_adjusted",
    "loss.kind=logit_adjusted balance=weights": "set balance: none",
    "loss.kind=logit_adjusted balance=sampling": "set balance: none",
    "progressive.start_size=100 progressive.epochs=2": "no multiple of 32; nearest: 96",
    "progressive.start_size=224 progressive.epochs=2": "is not smaller than the input",
    "progressive.start_size=128 progressive.epochs=12": "full size, which has to come last",
    "workers.shard=true": "workers.num_workers is 0; set it to 2 or more",
    "workers.shard=true workers.num_workers=[1,1]": "set it to 2 or more",
    "workers.shard=true workers.num_workers=2 network.freeze=backbone": "set workers.shard: false",
    "workers.shard=true workers.num_workers=2 compile=true": "do not go together",
    "augment.randaugment=2": "did you mean augment.randaugment_ops",
    "augment.mixup=0.2": "did you mean augment.mixup_alpha",
}


@pytest.mark.parametrize(("overrides", "reason"), CONTRADICTIONS.items())
def test_what_contradicts_itself_is_refused_with_what_to_do(overrides: str, reason: str) -> None:
    given = ["name=caps", "data.uri=x", "epochs=12", *overrides.split()]
    with pytest.raises(ConfigError, match=re.escape(reason)):
        load_config(TrainConfig, None, given)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_workers_get_the_same_configuration_as_json(path: Path) -> None:
    config = load_config(TrainConfig, path, [])
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_preset_needs_only_a_place_and_a_name(path: Path) -> None:
    config = load_config(TrainConfig, path, ["data.uri=s3://b/caps", "name=caps"])
    assert (config.name, config.data.uri) == ("caps", "s3://b/caps")


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all settings."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if inner:
            yield from leaves(inner[0], f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_setting_of_the_recipe_is_documented() -> None:
    pages = [(ROOT / "docs" / name).read_text() for name in ("training.md", "embedding.md")]
    rows = "\n".join(pages).splitlines()
    told = set()
    for row in rows:
        cells = row.split("|")
        if len(cells) < 4:
            continue
        section = ""
        for name in re.findall(r"`([\w.]+)[`=]", cells[1] + cells[2]):
            section = name.rpartition(".")[0] or section
            told |= {name, f"{section}{name}"}
    elsewhere = ("data.", "preprocess.", "export.", "workers.")
    missing = {n for n in leaves(TrainConfig) if not n.startswith(elsewhere)} - told
    assert missing == set()


def test_workers_with_another_working_directory_are_told_absolute_paths(tmp_path: Path) -> None:
    config = make_config(
        runs="runs",
        store="s3://factory/models",
        network={"weights": "weights/caps.pth"},
        tracking={"sample_ids": "samples", "mlflow_uri": "http://mlflow:5000"},
    )
    placed = with_absolute_paths(config, tmp_path)
    assert placed.runs == str(tmp_path / "runs")
    assert placed.store == "s3://factory/models"
    assert placed.network.weights == str(tmp_path / "weights/caps.pth")
    assert placed.tracking.sample_ids == str(tmp_path / "samples")
    assert placed.tracking.mlflow_uri == "http://mlflow:5000"
    at_home = make_config(runs="~/runs", tracking={"mlflow_uri": "databricks"})
    placed = with_absolute_paths(at_home, tmp_path)
    assert placed.runs == str(Path.home() / "runs")
    assert placed.network.weights == "package"
    assert placed.tracking.mlflow_uri == "databricks"
