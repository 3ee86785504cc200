"""How many threads this process computes with."""

from __future__ import annotations

import os

import torch

from cluster.environment import usable_cores

THREADS = "OMP_NUM_THREADS"
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for whatever it starts as a job


def use_all_cores() -> None:
    """Let torch compute on all cores where this process is a submitted job.

    Ray (2.60) starts jobs from an actor without CPUs, for which it sets one thread
    (`ray/_private/utils.py`, `set_omp_num_threads_if_unset`), and the job inherits that. Another
    number is one that somebody chose.
    """
    if JOB in os.environ and os.environ.get(THREADS) == "1":
        torch.set_num_threads(usable_cores())
