"""Finding the processes of a session by the mark they carry, and by who started them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from cluster.environment import MARK
from cluster.processes import end_marked, marked_processes

# Starts one process without a mark, as one whose title was written over it, and one with the mark
# of another session; tells their process ids and waits.
PARENT = f"""
import os, subprocess, sys, time
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
without = {{name: value for name, value in os.environ.items() if name != {MARK!r}}}
for environment in (without, without | {{{MARK!r}: "another"}}):
    print(subprocess.Popen(sleep, env=environment).pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def family() -> Iterator[tuple[int, int, int]]:
    """Process ids: the marked one, its child without a mark, its child of another session."""
    environment = {**os.environ, MARK: "this-test"}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        children = [int(parent.stdout.readline()) for _ in range(2)]
        yield parent.pid, children[0], children[1]
        parent.kill()
        for pid in children:
            if psutil.pid_exists(pid):
                psutil.Process(pid).kill()


def test_what_a_marked_process_started_is_found_without_a_mark_of_its_own(
    family: tuple[int, int, int],
) -> None:
    parent, unmarked, other = family
    assert {process.pid for process in marked_processes("this-test")} == {parent, unmarked}
    assert [process.pid for process in marked_processes("another")] == [other]


def test_ending_a_session_ends_these_too_and_no_other(family: tuple[int, int, int]) -> None:
    parent, unmarked, other = family
    assert end_marked("this-test") == 2
    assert not _is_running(parent)
    assert not _is_running(unmarked)
    assert _is_running(other)


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
