"""The command as a process that a test kills, and what it leaves."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pandas as pd
import psutil

from tests.jobs.score.conftest import CLASSES, Model, work_folder
from tests.jobs.score.serving import ROOT

started: list[subprocess.Popen[str]] = []

# The command, with parts small enough for a test to see several.
PROGRAM = """
import os
import sys
import jobs.score.output
import jobs.score.parts
import jobs.score.run
from jobs.score.__main__ import main
jobs.score.parts.ROWS_PER_PART = 16
sys.exit(main())
"""


# It stops itself when it has so many rows, and can be killed there at leisure, or go on.
STOPPING = """
import signal
add, rows_left = jobs.score.parts.Parts.add, [STOPS_AFTER]
def add_or_stop(self, rows):
    is_there = 0 < rows_left[0] <= len(rows)
    rows_left[0] -= len(rows)
    if is_there:
        os.kill(os.getpid(), signal.SIGSTOP)
    return add(self, rows)
jobs.score.parts.Parts.add = add_or_stop
"""


def start(
    *arguments: object,
    chunk: int | None = None,
    part: int = 16,
    group: int | None = None,
    dies_at: str = "",
    stops_after: int | None = None,
) -> subprocess.Popen[str]:
    """Start the command as a process of its own; workers take `chunk` images at a time, a part has
    `part` rows, and a group of the output `group`. Instead of calling what `dies_at` names it is
    gone, as by a kill; with the row `stops_after` it stops (SIGSTOP).
    """
    program = PROGRAM
    if stops_after is not None:
        stopping = STOPPING.replace("STOPS_AFTER", str(stops_after))
        program = program.replace("sys.exit", f"{stopping}sys.exit")
    if dies_at:
        program = program.replace("sys.exit", f"{dies_at} = lambda *_, **__: os._exit(9)\nsys.exit")
    program = program.replace("ROWS_PER_PART = 16", f"ROWS_PER_PART = {part}")
    if group is not None:
        program = program.replace(
            "sys.exit", f"jobs.score.output.ROWS_PER_GROUP = {group}\nsys.exit"
        )
    if chunk is not None:
        small = f"import jobs.score.crew\njobs.score.crew.IMAGES_PER_CHUNK = {chunk}\nsys.exit"
        program = program.replace("sys.exit", small)
    command = [sys.executable, "-c", program, *map(str, arguments)]
    job = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    started.append(job)
    return job


def end_started() -> None:
    """Kill what a test that failed has left running."""
    for job in started:
        if job.poll() is None:
            job.kill()
            job.communicate()
    started.clear()


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def wait_for_parts(output: Path, number: int, job: subprocess.Popen[str]) -> None:
    """Wait until a run has written so many parts; one that ends before is a failure."""

    def are_there() -> bool:
        assert job.poll() is None, f"it ended before {number} parts were there: {job.communicate()}"
        return num_parts(output) >= number

    wait_for(are_there)


def kill_after(parts: int, output: Path, *arguments: object) -> None:
    """Run the command until it has written so many parts, and kill it."""
    job = start(*arguments)
    wait_for_parts(output, parts, job)
    job.kill()
    job.communicate()


def stop_at_row(row: int, *arguments: object, chunk: int | None = None) -> subprocess.Popen[str]:
    """Run the command until so many rows are there, and stop it: SIGCONT lets it go on."""
    job = start(*arguments, chunk=chunk, stops_after=row)

    def is_stopped() -> bool:
        assert job.poll() is None, f"it ended before row {row}: {job.communicate()}"
        return psutil.Process(job.pid).status() == psutil.STATUS_STOPPED

    wait_for(is_stopped)
    return job


def kill_at_row(row: int, *arguments: object, chunk: int | None = None) -> None:
    """Run the command until so many rows are there, and kill it."""
    job = stop_at_row(row, *arguments, chunk=chunk)
    job.kill()
    job.communicate()


def wait_until_idle(model: Model) -> None:
    """Wait until a server has done what it was asked, also by a run that was killed."""
    # Whatever was sent before is read before this is.
    httpx.get(f"{model.server}/v2/repository/index", timeout=60).raise_for_status()
    wait_for(lambda: not model.border.num_at_once)


def num_parts(output: Path) -> int:
    """Return how many parts an unfinished run has written."""
    return len(list((work_folder(output) / "parts").glob("*.parquet")))


def assert_complete(output: Path, images: Path) -> None:
    """Assert that there is one good row for each image, in order, and nothing else is left."""
    table = pd.read_parquet(output)
    assert list(table["path"]) == sorted(str(path) for path in images.iterdir())
    assert table["code"].isna().all()
    assert table["label"].isin(CLASSES).all()
    assert not work_folder(output).exists()
