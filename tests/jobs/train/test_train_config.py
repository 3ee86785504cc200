"""The configurations that ship are loadable, with the overrides that the manifests and docs use."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from jobs.config import load_config
from jobs.submitted import refuse_lost_results
from jobs.train.__main__ import written_by
from jobs.train.config import TrainConfig
from models.errors import ConfigError

ROOT = Path(__file__).parent.parent.parent.parent
CONFIGS = sorted((ROOT / "configs" / "train").glob("*.yaml"))
RAY_JOB = ROOT / "kubernetes" / "base" / "train" / "ray-job.yaml"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_is_valid(path: Path) -> None:
    assert load_config(TrainConfig, path, []).name == path.stem


def test_the_ray_job_trains_with_a_shipped_configuration_and_known_overrides() -> None:
    entrypoint = yaml.safe_load(RAY_JOB.read_text())["spec"]["entrypoint"]
    python, flag, module, config, *overrides = shlex.split(entrypoint)
    assert (python, flag, module) == ("python", "-m", "jobs.train")
    filled = [override.replace("${", "s3://bucket/").replace("}", "") for override in overrides]
    loaded = load_config(TrainConfig, ROOT / config, filled)
    assert loaded.store.startswith("s3://bucket/")
    assert loaded.runs.startswith("s3://bucket/")


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
