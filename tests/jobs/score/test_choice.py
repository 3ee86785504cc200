"""All workers of a run score in one precision, also when it goes on after a kill."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.score import crew
from jobs.score.items import Item
from jobs.score.worker import Choice, Job, Opened
from tests.jobs.score.conftest import Shell, work_folder
from tests.jobs.score.running import kill_at_row

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("on_ray")]

NUM_WORKERS = 3


class Fickle(crew._RayWorker):
    """A worker that finds another precision faster than the one before it did, and tells in a
    folder what it opened.
    """

    folder: Path

    def open(self, job: Job, choice: Choice | None) -> Opened:
        """Open the model."""
        if choice is None:
            is_first = _create(self.folder / "first")
            engine = {"precision": "fp16" if is_first else "fp32", "engines": ("openvino",)}
            job = Job(**{**vars(job), "engine": job.engine.model_copy(update=engine)})
        opened = super().open(job, choice)
        (self.folder / str(os.getpid())).write_text(opened.precision)
        return opened

    def score(self, items: Sequence[Item]) -> pa.Table:
        """Score, once all have opened it alike; or nearly a minute later."""
        until = time.monotonic() + 50
        while not is_alike(self.folder) and time.monotonic() < until:
            time.sleep(0.1)
        return super().score(items)


def is_alike(folder: Path) -> bool:
    """Say whether all workers have opened the model, in the same precision."""
    opened = [path.read_text() for path in folder.iterdir() if path.name != "first"]
    return len(opened) == NUM_WORKERS and len(set(opened)) == 1


def _create(path: Path) -> bool:
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def test_workers_that_choose_otherwise_open_the_model_again(
    bundle: str, shell: Shell, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "opened"
    folder.mkdir()
    monkeypatch.setattr(crew, "_RayWorker", type("Fickle", (Fickle,), {"folder": folder}))
    how = ("--bundle", bundle, "--workers", NUM_WORKERS, "--threads", 1)
    assert shell.run(images, tmp_path / "s.parquet", *how).status == 0
    assert is_alike(folder)


def test_a_run_that_goes_on_chooses_what_it_chose_before(
    bundle: str, shell: Shell, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "s.parquet"
    kill_at_row(60, images, output, "--bundle", bundle, chunk=8)
    journal = work_folder(output) / "run.json"
    told = json.loads(journal.read_text())
    assert told["choice"] in (["openvino", "fp32"], ["openvino", "bf16"])
    journal.write_text(json.dumps({**told, "choice": ["openvino", "fp16"]}))
    ended = shell.run(images, output, "--bundle", bundle, "--resume")
    assert ended.line["num_resumed"] > 0
    assert "openvino fp16 on cpu" in ended.shown
