from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs.data.audit.__main__ import load_job, main
from jobs.data.audit.config import AuditConfig
from jobs.data.audit.output import default_output, write_report
from jobs.data.audit.report import Report
from jobs.data.config import DataConfig
from models.errors import ConfigError
from models.storage import open_store
from tests.jobs.data.audit.planted import encoded, picture
from tests.jobs.data.images import write

ROOT = Path(__file__).parents[4]


def test_a_bare_setting_finds_its_section() -> None:
    overrides = ["source=manifest", "label_column=verdict", "few_images=7", "split.test=0.2"]
    job = load_job("list.csv", None, [*overrides, "split.train=0.65", "preprocess.resize=pad"])
    assert job.data.uri == "list.csv"
    assert job.data.label_column == "verdict"
    assert job.data.split.test == 0.2
    assert job.audit.few_images == 7
    assert job.preprocess.resize == "pad"


def test_no_setting_is_in_both_sections() -> None:
    assert not set(DataConfig.model_fields) & set(AuditConfig.model_fields)


@pytest.mark.parametrize("source", ["a: b", "1", "null", "[x", "ü'\"", "s3://b/c d"])
def test_a_source_is_taken_as_it_is_written(source: str) -> None:
    assert load_job(source, None, []).data.uri == source


def test_a_training_configuration_gives_the_rest() -> None:
    job = load_job("cells", ROOT / "configs" / "train" / "elpv.yaml", [])
    assert job.data.uri == "cells"
    assert job.augment.vertical_flip
    assert job.data.split.test == 0.2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("few_image=3", "few_images"),
        ("skip=[nothing]", "no finding nothing"),
        ("near_duplicate=2", "near_duplicate"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_is_right(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_job("set", None, [override])


def test_the_results_of_a_submitted_job_are_not_written_where_they_get_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "working_dir_files" / "x"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path), "--output", "here"])
    assert ended.value.code == 1


def test_the_default_output_is_named_like_the_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "caps" / "good").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "caps" / "good")
    assert default_output("s3://b/caps/") == ".sightline/audit/caps"
    assert default_output("lists/november.csv") == ".sightline/audit/november.csv"
    assert default_output("..") == ".sightline/audit/caps"
    assert default_output("/") == default_output("s3://b/..") == ".sightline/audit/set"


def test_the_audit_of_another_set_of_the_same_name_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = Report("line-4/caps", "today", 0, {}, [])
    write_report(open_store(default_output("line-4/caps")), report, "")
    assert default_output(str(tmp_path / "line-5" / ".." / "line-4" / "caps"))
    with pytest.raises(ConfigError, match="holds the audit of line-4/caps"):
        default_output("s3://factory/caps")
    with pytest.raises(SystemExit) as ended:
        main(["line-5/caps"])
    assert ended.value.code == 1


PAGE = (ROOT / "docs" / "audit.md").read_text()


@pytest.mark.parametrize("setting", AuditConfig.model_fields)
def test_the_page_of_the_audit_shows_every_setting_with_its_default(setting: str) -> None:
    snippets = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
    shown = {name: value for each in snippets for name, value in each.get("audit", {}).items()}
    assert setting in shown
    default = AuditConfig().model_dump()[setting]
    if setting != "synonyms":
        assert shown[setting] == default


@pytest.mark.ray
@pytest.mark.slow
def test_the_command_ends_with_json_and_says_by_its_status_what_it_found(tmp_path: Path) -> None:
    files = {
        f"{c}/{n}.jpg": encoded(picture(n, c)) for c in ("good", "defective") for n in range(6)
    }
    write(tmp_path / "set", {**files, "defective/torn.jpg": files["good/1.jpg"]})
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "jobs.data.audit", str(tmp_path / "set")),
            *("--output", str(tmp_path / "out"), "--fail-on", "error", "network.weights=none"),
        ],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 3, ended.stderr[-2000:]
    line = json.loads(ended.stdout.splitlines()[-1])
    assert line["failed"] is True
    assert line["by_finding"]["label_conflict"] == 2
    assert Path(line["report"]).stat().st_size > 10_000
    assert Path(line["findings"]).name == "findings.parquet"
    assert "One image under two labels" in ended.stderr
