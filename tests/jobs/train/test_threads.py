"""A submitted job computes on all cores, whatever Ray says of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.environment import usable_cores
from jobs.train.threads import JOB, THREADS

ROOT = Path(__file__).parents[3]
PROGRAM = """
import torch
from jobs.train.threads import use_all_cores
use_all_cores()
print(torch.get_num_threads())
"""

pytestmark = pytest.mark.slow  # torch is loaded anew


@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({THREADS: "1", JOB: "{}"}, usable_cores()),
        ({THREADS: "1"}, 1),
    ],
)
def test_only_the_one_thread_of_a_submitted_job_is_overruled(
    variables: dict[str, str], threads: int
) -> None:
    names = (THREADS, JOB)
    known = {name: value for name, value in os.environ.items() if name not in names}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=known | variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(found.stdout) == threads
