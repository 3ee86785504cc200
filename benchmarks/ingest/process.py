"""One library reads one set in a process of its own, of which nothing is left afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks.environments import PackageEnvironment, make_environment, pinned_here
from benchmarks.fixtures import ROOT, STATE
from benchmarks.ingest.plan import ENVIRONMENTS
from benchmarks.ingest.reader import Request
from cluster.environment import MARK
from cluster.processes import end_marked

SECONDS_TO_READ = 600
SECONDS_TO_END = 15
SECONDS_BETWEEN_LOOKS = 0.5
LOG_LINES = 12


class ReaderFailure(Exception):
    """A library did not read what it was asked to; the message is the reason."""


def loader_environment(name: str) -> PackageEnvironment:
    """Return the environment of a library, made or used again. Raises `EnvironmentFailure`."""
    entry = ENVIRONMENTS[name]
    requirements = [*entry.requirements, *pinned_here(entry.pinned)]
    made = make_environment(STATE / "loaders" / name, requirements)
    (site,) = (made.folder / "lib").glob("python*/site-packages")
    # Behind its own packages come those of this process.
    (site / "shared.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return made


def run_reader(
    request: Request,
    python: Path | str = sys.executable,
    variables: Mapping[str, str] | None = None,
    watch: Callable[[psutil.Process], None] | None = None,
) -> dict[str, Any]:
    """Run a request in a new process and return its answer, calling `watch` twice a second
    meanwhile. Raises `ReaderFailure`.
    """
    mark = secrets.token_hex(8)
    with tempfile.TemporaryDirectory(prefix="sli-") as made:
        folder = Path(made)
        (folder / "request").write_text(request.dump())
        environment = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            **(variables or {}),
            "PYTHONPATH": str(ROOT),
            # Sessions of Ray and caches must not meet those of others.
            "HF_HOME": str(folder / "hub"),
            MARK: mark,
        }
        command = [
            *(str(python), "-m", "benchmarks.ingest.reader"),
            *(str(folder / "request"), str(folder / "answer")),
        ]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=folder,
                start_new_session=True,
            )
            try:
                _wait(process, watch)
            finally:
                _end(process, mark)
        if not (folder / "answer").exists():
            lines = (folder / "log").read_text(errors="replace").splitlines()
            tail = " | ".join(line[:300] for line in lines[-LOG_LINES:])
            raise ReaderFailure(f"it ended with status {process.returncode}: {tail}")
        found: dict[str, Any] = json.loads((folder / "answer").read_text())
        return found


def _wait(process: subprocess.Popen[bytes], watch: Callable[[psutil.Process], None] | None) -> None:
    deadline = time.monotonic() + SECONDS_TO_READ
    while time.monotonic() < deadline:
        try:
            process.wait(SECONDS_TO_READ if watch is None else SECONDS_BETWEEN_LOOKS)
        except subprocess.TimeoutExpired:
            if watch is not None:
                watch(psutil.Process(process.pid))
        else:
            return
    raise ReaderFailure(f"it was not done after {SECONDS_TO_READ} s")


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """End a reader and all that it started: Ray's processes have a mark of their own."""
    started = []
    if process.poll() is None:
        started = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)
    for each in started:
        with contextlib.suppress(psutil.Error):
            each.kill()
    end_marked(mark)
    process.wait()
