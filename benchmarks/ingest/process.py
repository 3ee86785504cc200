"""One library reads one set in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks.apart import run_apart, shared_environment
from benchmarks.environments import PackageEnvironment
from benchmarks.ingest.plan import ENVIRONMENTS
from benchmarks.ingest.reader import Request

SECONDS_TO_READ = 600


def loader_environment(name: str) -> PackageEnvironment:
    """Return the environment of a library, made or used again. Raises `EnvironmentFailure`."""
    entry = ENVIRONMENTS[name]
    return shared_environment(name, entry.requirements, entry.pinned)


def run_reader(
    request: Request,
    python: Path | str = sys.executable,
    variables: Mapping[str, str] | None = None,
    watch: Callable[[psutil.Process], None] | None = None,
) -> dict[str, Any]:
    """Run a request in a new process and return its answer. Raises `ApartFailure`."""
    return run_apart(
        "benchmarks.ingest.reader",
        request.dump(),
        seconds=SECONDS_TO_READ,
        python=python,
        variables=variables,
        watch=watch,
    )
