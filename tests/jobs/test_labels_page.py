"""The commands of docs/labels.md, run as they stand there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from jobs.labels import main
from models.label_edits import OPERATIONS, parse_edits
from tests.bundles import tiny_bundle

PAGE = (Path(__file__).parents[2] / "docs" / "labels.md").read_text()
CLASSES = ("red", "red-matt", "blue", "christmas", "damaged")


def commands() -> list[list[str]]:
    """Return the arguments of each `jobs.labels` command on the page."""
    found = re.findall(r"^\$ \.venv/bin/python -m jobs\.labels (.*)$", PAGE, re.MULTILINE)
    return [shlex.split(each) for each in found]


def test_the_season_of_bottle_caps_runs_as_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_bundle(tmp_path / ".sightline/models", name="caps", kind="dynamic", classes=CLASSES)
    monkeypatch.chdir(tmp_path)
    revisions, shown = [], ""
    for arguments in commands():
        assert main(arguments) == 0
        out, err = capsys.readouterr()
        line = json.loads(out)
        revisions.append(line.get("revision", 0))
        shown += err
    # dry run, merge, rename, hide, show, history, rollback, diff
    assert revisions == [0, 1, 2, 3, 3, 0, 4, 0]
    for told in ("coverage", "christmas", "reject", "merged into red", "one bin for both"):
        assert told in shown
    assert main(["show", "caps"]) == 0
    labels = {each["id"]: each for each in json.loads(capsys.readouterr().out)["map"]["labels"]}
    assert labels["red"]["outputs"] == ["red", "red-matt"]
    assert labels["damaged"]["name"] == "reject"
    assert labels["damaged"]["aliases"] == ["damaged"]
    assert labels["christmas"]["status"] == "active"  # rolled back to before it was hidden


def test_every_edit_is_in_the_table_and_the_file_swaps_two_names() -> None:
    for operation in OPERATIONS:
        assert f"`{operation}`" in PAGE
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert len(parse_edits(yaml.safe_load(block))) == 2
