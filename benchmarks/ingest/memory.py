"""How much memory Sightline takes for reading a set of so many images, all its processes together.

Proportional set size, so the object store counts once; the kernel's file cache is not in it. Every
size is read for as many images, in as many epochs as that takes: a small set alone would be read
before the buffers are full.
"""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path

import psutil

from benchmarks.fixtures import STATE
from benchmarks.ingest.consume import Window
from benchmarks.ingest.plan import BATCH_SIZE
from benchmarks.ingest.process import run_reader
from benchmarks.ingest.reader import Request
from benchmarks.ingest.sets import make_set, synthetic_samples, write_packed
from benchmarks.serving.steps import Figures
from benchmarks.smaps import memory_of


def measure_memory(num_images: int, num_read: int) -> Figures:
    """Read a packed set of synthetic images and return the most memory it took, in MiB."""
    folder = synthetic_set(num_images)
    samples: list[tuple[float, float]] = []

    def watch(process: psutil.Process) -> None:
        samples.append(_memory_of_tree(process))

    # A part of a set that gives only training images is split off, so there are more than enough.
    epochs = 2 * (num_read // num_images) + 2
    request = Request(
        module="sightline",
        way="auto",
        uri=str(folder.absolute() / "packed"),
        window=Window(BATCH_SIZE, num_read - BATCH_SIZE),
        workers=0,
        options={"source": "packed", "shuffle": "auto", "epochs": epochs},
    )
    found = run_reader(request, watch=watch)
    return {
        "mib": max(total for total, _ in samples),
        "shared_mib": max(shared for _, shared in samples),
        "per_second": found["per_second"],
        "first_batch_s": found["first_batch_s"],
    }


def synthetic_set(num_images: int) -> Path:
    """Return a folder with a packed set of small synthetic images, made or used again."""
    return make_set(
        STATE / "ingest" / f"synthetic-{num_images}",
        {"synthetic": num_images},
        partial(_write, num_images),
    )


def _write(num_images: int, folder: Path) -> None:
    write_packed(folder / "packed", synthetic_samples(num_images))


def _memory_of_tree(process: psutil.Process) -> tuple[float, float]:
    total = shared = 0.0
    with contextlib.suppress(psutil.Error):
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(OSError):  # it ended meanwhile
                found = memory_of(each.pid)
                total += found.pss_mib
                shared += found.shared_mib
    return total, shared
