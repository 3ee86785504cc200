"""docs/packing.md: its commands parse, its snippet runs, and it names every option and column."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from jobs.config import load_section
from jobs.data.config import DataConfig
from jobs.data.pack import parser
from jobs.data.shards import FIELDS, IMAGE, OPTIONAL, write_shard
from tests.jobs.data.images import jpeg

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "packing.md").read_text()
COMMANDS = re.findall(r"^\$ \S+ -m jobs\.data\.pack (.*)$", PAGE, re.MULTILINE)
OPTIONS = [
    option
    for action in parser()._actions
    for option in action.option_strings
    if option.startswith("--") and option != "--help"
]


def test_the_page_has_commands() -> None:
    assert len(COMMANDS) >= 4


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_is_sound(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    given = parser().parse_args(shlex.split(command))
    load_section(DataConfig, given.config, "data", [f"uri={given.source}", *given.overrides])


@pytest.mark.parametrize("option", OPTIONS)
def test_the_page_names_every_option(option: str) -> None:
    assert f"`{option}`" in PAGE


@pytest.mark.parametrize("column", [field.name for field in (IMAGE, *FIELDS, *OPTIONAL)])
def test_the_page_names_every_column(column: str) -> None:
    assert f"`{column}`" in PAGE


def test_the_snippet_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    from PIL import Image

    columns = {
        "size": [len(jpeg(1))],
        "label": ["good"],
        "path": ["good/1.jpg"],
        "sha256": ["0"],
        "width": [24],
        "height": [24],
        "split": ["train"],
    }
    (tmp_path / "packed").mkdir()
    table = pa.table(columns, schema=pa.schema(FIELDS))
    write_shard(tmp_path / "packed" / "part-00000.parquet", table, [jpeg(1)])
    monkeypatch.chdir(tmp_path)
    shown: list[Image.Image] = []
    monkeypatch.setattr(Image.Image, "show", lambda image: shown.append(image))
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(snippet, {})
    assert np.asarray(shown[0]).shape == (24, 24, 3)
