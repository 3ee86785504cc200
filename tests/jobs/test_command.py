"""How a command ends: with its status, and everything it said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A thread that runs for ever, and what crashes a process that is torn down in the usual way.
PROGRAM = """
import atexit, os, sys, threading, time
from jobs.command import run_command
threading.Thread(target=time.sleep, args=(60,)).start()
atexit.register(os.abort)
def main():
    print("said", end="")
    print("told", end="", file=sys.stderr)
    BODY
run_command(main)
"""


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ("return 0", 0, "told"),
        ("return 3", 3, "told"),
        ("raise SystemExit(130)", 130, "told"),
        ("raise SystemExit", 0, "told"),
        ("raise SystemExit('no such thing')", 1, "toldno such thing\n"),
    ],
)
def test_a_command_ends_at_once_with_its_status_and_its_words(
    body: str, status: int, told: str
) -> None:
    ended = run(body)
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, "said", told)


def test_a_defect_of_ours_keeps_its_traceback() -> None:
    ended = run("return 1 / 0")
    assert ended.returncode == 1
    assert ended.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_words_that_nobody_reads_are_no_success() -> None:
    command = f'{sys.executable} -c "$PROGRAM" | true; exit ${{PIPESTATUS[0]}}'
    program = PROGRAM.replace("BODY", "print('x' * 200_000); return 0")
    ended = subprocess.run(
        ["bash", "-c", command], env={"PROGRAM": program}, cwd=ROOT, capture_output=True
    )
    assert ended.returncode in (1, 120)


def run(body: str) -> subprocess.CompletedProcess[str]:
    """Run a command with this body."""
    program = PROGRAM.replace("BODY", body)
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
