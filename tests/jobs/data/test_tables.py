"""What jobs print of a set."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from cluster.session import Session
from jobs.data.config import DataConfig
from jobs.data.tables import read_index
from tests.jobs.data.images import class_files, write
from tests.jobs.data.packs import SPEC


@pytest.mark.ray
def test_the_split_is_printed_as_a_table(ray_session: Session, tmp_path: Path) -> None:
    for split, start, counts in (
        ("train", 0, {"bad": 12, "[red]": 40}),
        ("test", 500, {"bad": 5, "[red]": 6}),
    ):
        write(tmp_path / split, class_files(counts, start=start))
    out = io.StringIO()
    config = DataConfig(uri=str(tmp_path), split={"train": 0.75, "validation": 0.25, "test": 0})
    read_index(config, SPEC, Console(file=out, width=100), cpu_limit=2)
    rows = [
        [cell.strip() for cell in line.strip("│┃ ").replace("┃", "│").split("│")]
        for line in out.getvalue().splitlines()
        if "│" in line or "┃" in line
    ]
    assert rows == [
        ["class", "train", "validation", "test", "all"],
        ["[red]", "30", "10", "6", "46"],
        ["bad", "9", "3", "5", "17"],
        ["all", "39", "13", "11", "63"],
    ]
