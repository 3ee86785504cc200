"""A part of a benchmark in a process of its own, of which nothing is left afterwards.

It is a module that is run with two files: a request of JSON, and where the answer of JSON is to be
written.
"""

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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.environments import PackageEnvironment, make_environment, pinned_here
from benchmarks.fixtures import ROOT, STATE
from cluster.environment import MARK
from cluster.processes import end_marked

SECONDS_TO_END = 15
SECONDS_BETWEEN_LOOKS = 0.5
LOG_LINES = 12


class ApartFailure(Exception):
    """The process did not do what it was asked to; the message is the reason."""


def shared_environment(
    name: str, requirements: Sequence[str], pinned: Sequence[str]
) -> PackageEnvironment:
    """Return an environment with these packages, made or used again, that sees those of this
    process behind its own: torch and Ray are gigabytes, and the same for all.

    Raises `EnvironmentFailure`.
    """
    made = make_environment(STATE / "loaders" / name, [*requirements, *pinned_here(pinned)])
    (site,) = (made.folder / "lib").glob("python*/site-packages")
    # Behind its own packages come those of this process.
    (site / "shared.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return made


def run_apart(
    module: str,
    request: str,
    *,
    seconds: float,
    python: Path | str = sys.executable,
    variables: Mapping[str, str] | None = None,
    watch: Callable[[psutil.Process], None] | None = None,
) -> dict[str, Any]:
    """Run a request in a new process and return its answer, calling `watch` twice a second
    meanwhile. Raises `ApartFailure`, also after so many seconds.
    """
    mark = secrets.token_hex(8)
    with tempfile.TemporaryDirectory(prefix="slb-") as made:
        folder = Path(made)
        (folder / "request").write_text(request)
        environment = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            **(variables or {}),
            "PYTHONPATH": str(ROOT),
            # Sessions of Ray and caches must not meet those of others.
            "HF_HOME": str(folder / "hub"),
            MARK: mark,
        }
        command = [
            *(str(python), "-m", module),
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
                _wait(process, seconds, watch)
            finally:
                _end(process, mark)
        if not (folder / "answer").exists():
            lines = (folder / "log").read_text(errors="replace").splitlines()
            tail = " | ".join(line[:300] for line in lines[-LOG_LINES:])
            raise ApartFailure(f"it ended with status {process.returncode}: {tail}")
        found: dict[str, Any] = json.loads((folder / "answer").read_text())
        return found


def _wait(
    process: subprocess.Popen[bytes],
    seconds: float,
    watch: Callable[[psutil.Process], None] | None,
) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            process.wait(seconds if watch is None else SECONDS_BETWEEN_LOOKS)
        except subprocess.TimeoutExpired:
            if watch is not None:
                watch(psutil.Process(process.pid))
        else:
            return
    raise ApartFailure(f"it was not done after {seconds:g} s")


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """End a process and all that it started: Ray's processes have a mark of their own."""
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
