"""Freed memory stays with the process that trains, and goes back when it is done."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from jobs.config import load_config
from jobs.train.config import TrainConfig
from jobs.train.freed_memory import TUNABLES, tunables
from tests.jobs.train.test_train_config import ROOT

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library is not glibc"
)

# As a step does: blocks of several sizes, filled, and freed together. Prints how often the kernel
# had to give a page while that was done again, as a share of all pages that were touched, and how
# many MiB are held afterwards.
PROGRAM = """
import ctypes
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a huge page is one fault, not 512
import resource, sys, threading
from contextlib import nullcontext
import torch
from jobs.train.freed_memory import keeping_freed_memory

SIZES = [1, 3, 40, 80]  # MiB

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    kept = [torch.empty(size << 20, dtype=torch.uint8).fill_(1) for size in SIZES]
    del kept

def work():
    with keeping_freed_memory() if "keeping" in sys.argv else nullcontext():
        for _ in range(5):  # until there is room for each block
            step()
        before = faults()
        for _ in range(20):
            step()
        print((faults() - before) / (20 * sum(SIZES) * 256))
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[1]) // 256
    print(held)

torch.set_num_threads(1)
if "thread" in sys.argv:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
else:
    work()
"""


def run(*arguments: str, **variables: str) -> tuple[float, int]:
    """Run the program in a process of its own; return the share of faults and what is held."""
    environment = {name: value for name, value in os.environ.items() if name != TUNABLES}
    environment |= variables
    command = [sys.executable, "-c", PROGRAM, *arguments]
    found = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    share, held = found.stdout.split()
    return float(share), int(held)


@pytest.mark.slow
def test_what_a_step_frees_serves_the_next_one_and_goes_back_at_the_end() -> None:
    share_before, held_before = run()
    assert share_before > 0.6  # else there would be nothing to do
    share, held = run("keeping")
    assert share < 0.2
    assert held < held_before + 60  # of 124


@pytest.mark.slow
def test_in_a_thread_the_environment_of_the_process_does_it() -> None:
    assert run("thread")[0] > 0.6
    assert run("thread", **tunables())[0] < 0.2


def test_settings_that_are_there_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TUNABLES, "glibc.malloc.arena_max=4:glibc.malloc.tcache_count=9")
    given = tunables()[TUNABLES].split(":")
    assert given[:2] == ["glibc.malloc.arena_max=4", "glibc.malloc.tcache_count=9"]
    assert [setting.partition("=")[0] for setting in given[2:]] == [
        "glibc.malloc.mmap_max",
        "glibc.malloc.trim_threshold",
    ]


@pytest.mark.parametrize("on_gpu", [False, True])
def test_workers_of_ray_train_are_started_with_it_on_a_cpu(on_gpu: bool) -> None:
    from jobs.train.ray_train import _make_trainer

    config = load_config(
        TrainConfig,
        ROOT / "configs" / "train" / "balanced.yaml",
        ["workers.num_workers=2", f"workers.use_gpu={str(on_gpu).lower()}"],
    )
    given = _make_trainer(config, None, "run", None).run_config.worker_runtime_env
    assert given.get("env_vars", {}) == ({} if on_gpu else tunables())
