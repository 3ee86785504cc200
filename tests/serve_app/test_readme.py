"""What the README says of a model that is served, typed as it stands there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from tests.serve_app.conftest import Server, encode

pytestmark = [pytest.mark.e2e, pytest.mark.ray]

ROOT = Path(__file__).parents[2]
SECONDS_BETWEEN_LOOKS = 1.0  # the default of `label_poll_seconds`


def section(title: str) -> str:
    """Return what stands below a heading of the README."""
    text = (ROOT / "README.md").read_text()
    found = re.search(rf"^## {title}\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    assert found, f"the README has no section {title!r}"
    return found[1]


@dataclass(frozen=True)
class Reader:
    """Somebody who types what the README says, in a folder where the demo has run."""

    server: Server

    def type(self, command: str) -> str:
        """Return what a command prints."""
        done = subprocess.run(
            self._here(command),
            shell=True,
            cwd=self.server.home,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def type_all(self, title: str) -> list[str]:
        """Return what each command of a section prints, but for `make serve`."""
        commands = re.findall(r"^\$ (.*)$", section(title), re.MULTILINE)
        printed = []
        for command in commands:
            if not command.startswith("make serve"):
                printed.append(self.type(command))
                time.sleep(SECONDS_BETWEEN_LOOKS * 1.5)
        return printed

    def _here(self, text: str) -> str:
        return text.replace(".venv/bin/python", sys.executable).replace(
            "localhost:8000", self.server.address
        )


@pytest.fixture(scope="module")
def reader(server: Server) -> Reader:
    """The demo's photos, of which one is a cell that the model calls defective."""
    folder = server.home / ".sightline" / "data" / "elpv"
    url = f"{server.url}/v2/models/elpv/classify"
    photos = [encode(seed, kind="PNG") for seed in range(40)]
    labels = [httpx.post(url, content=photo).json()["label"] for photo in photos]
    for number, (photo, label) in enumerate(zip(photos, labels, strict=True)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / f"cell{number:04}.png").write_bytes(photo)
    bad = next(photo for photo, label in zip(photos, labels, strict=True) if label == "defective")
    (folder / "defective" / "cell0001.png").write_bytes(bad)
    return Reader(server)


def test_one_image_is_scored(reader: Reader) -> None:
    (printed,) = reader.type_all("Score an image")
    answer: dict[str, Any] = json.loads(printed)
    assert answer["label"] == "defective"
    assert {"confidence", "scores", "version", "engine", "label_revision"} <= set(answer)


def test_a_folder_is_scored(reader: Reader) -> None:
    (printed,) = reader.type_all("Score a folder")
    line = json.loads(printed.splitlines()[-1])
    files = list((reader.server.home / ".sightline" / "data" / "elpv").rglob("*.png"))
    assert (line["num_images"], line["num_failed"]) == (len(files), 0)
    rows = pq.read_table(reader.server.home / "cells.parquet").to_pylist()
    assert len(rows) == len(files)
    assert sum(row["label"] == row["truth"] for row in rows) > 0.9 * len(rows)


def test_a_label_changes_while_the_model_serves(reader: Reader) -> None:
    renamed, answer, back = reader.type_all("Change a label while it serves")
    assert json.loads(renamed)["revision"] == 1
    told = json.loads(answer)
    assert (told["label"], told["label_revision"]) == ("reject", 1)
    assert json.loads(back)["revision"] == 2


def test_tritonclient_scores_an_image(reader: Reader) -> None:
    pytest.importorskip("tritonclient.http")
    (program,) = re.findall(r"```python\n(.*?)```", section("Use tritonclient"), re.DOTALL)
    (reader.server.home / "use.py").write_text(
        program.replace("localhost:8000", reader.server.address)
    )
    assert reader.type(".venv/bin/python use.py").startswith("defective [")
