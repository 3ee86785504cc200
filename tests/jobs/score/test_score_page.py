"""docs/score.md: its commands parse, its snippets run, and it names every option and column."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from jobs.score.__main__ import parser
from jobs.score.columns import KEY, Columns
from tests.jobs.data.images import class_files, write
from tests.jobs.score.conftest import Model, Shell

PAGE = (Path(__file__).parents[3] / "docs" / "score.md").read_text()
COMMANDS = [
    command.replace("\\\n", " ").partition(" -m jobs.score ")[2]
    for command in re.findall(r"^\$ (.*jobs\.score(?:.*\\\n)*.*)$", PAGE, re.MULTILINE)
]
OPTIONS = [
    option
    for action in parser()._actions
    for option in action.option_strings
    if option.startswith("--") and option != "--help"
]


def test_the_page_has_commands() -> None:
    assert len(COMMANDS) >= 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_parses(command: str) -> None:
    parser().parse_args(shlex.split(command, comments=True))


@pytest.mark.parametrize("option", OPTIONS)
def test_the_page_names_every_option(option: str) -> None:
    assert re.search(rf"{option}\b", PAGE)


def test_the_page_names_every_column() -> None:
    columns = Columns(True, True, "top", 1, 8)
    missing = [name for name in columns.part_schema().names if f"`{name}`" not in PAGE]
    assert missing == [KEY]  # only in parts


def test_the_snippets_of_the_page_run(
    model: Model, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "images", class_files({"'=x": 2, "torn": 2}))
    monkeypatch.chdir(tmp_path)
    for output in ("scores.parquet", "scores.csv"):
        shell.run("images", "--url", model.url, "--output", output, "--truth")
    names: dict[str, object] = {}
    for snippet in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(snippet, names)
    scores = names["scores"]
    assert list(scores["truth"]) == ["'=x", "'=x", "torn", "torn"]  # type: ignore[index]
