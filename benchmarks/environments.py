"""Environments of Python packages, made with `uv` and kept, one for each library that is measured.

An environment is complete when `environment.json` is in it, which is written last and says what was
asked for; with the same request it is used again. What cannot be made raises
`EnvironmentFailure` with the installer's own reason, for the report.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

RECORD = "environment.json"
SECONDS_TO_INSTALL = 900
REASON_LINES = 12


class EnvironmentFailure(Exception):
    """An environment could not be made; the message is the reason."""


@dataclass(frozen=True)
class PackageEnvironment:
    """Where an environment is, and what is in it."""

    folder: Path
    versions: dict[str, str]  # by package, as resolved

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"


def make_environment(
    folder: Path, requirements: Sequence[str], python: str | None = None
) -> PackageEnvironment:
    """Return the environment at `folder`, made or used again, with the Python of this process or
    one of the machine's in the range given (as in ">=3.11,<3.12").

    Raises `EnvironmentFailure` if a package is not found, does not fit the others or does not
    build.
    """
    base = python or os.path.realpath(sys.executable)
    wanted = {"requirements": list(requirements), "python": base}
    record = folder / RECORD
    if record.is_file():
        found = json.loads(record.read_text())
        if {key: found.get(key) for key in wanted} == wanted:
            return PackageEnvironment(folder.absolute(), found["versions"])
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    interpreter = str(folder / "bin" / "python")
    _uv("venv", "--python", base, str(folder))
    if requirements:
        _uv("pip", "install", "--python", interpreter, *requirements)
    listed = json.loads(_uv("pip", "list", "--python", interpreter, "--format", "json"))
    versions = {each["name"]: each["version"] for each in listed}
    record.write_text(json.dumps({**wanted, "versions": versions}, indent=1))
    return PackageEnvironment(folder.absolute(), versions)


def pinned_here(packages: Sequence[str]) -> tuple[str, ...]:
    """Return requirements of exactly the versions that this process has."""
    return tuple(f"{name}=={version(name)}" for name in packages)


def _uv(*arguments: str) -> str:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    if uv is None:
        raise EnvironmentFailure("uv is not installed: pip install uv")
    try:
        result = subprocess.run(
            [uv, "--quiet", *arguments],
            capture_output=True,
            text=True,
            timeout=SECONDS_TO_INSTALL,
            env={**os.environ, "UV_PYTHON_DOWNLOADS": "never"},
        )
    except subprocess.TimeoutExpired as error:
        raise EnvironmentFailure(
            f"uv {arguments[0]} was not done after {SECONDS_TO_INSTALL} s"
        ) from error
    if result.returncode:
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        reason = " ".join(lines[:REASON_LINES]) or f"status {result.returncode}"
        raise EnvironmentFailure(f"uv {arguments[0]} failed: {reason}")
    return result.stdout
