"""What is measured together: the ceiling and every library in turns, then memory by size."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.apart import ApartFailure
from benchmarks.crew import Crew
from benchmarks.environments import EnvironmentFailure
from benchmarks.ingest.buckets import S3, serving_buckets
from benchmarks.ingest.memory import measure_memory
from benchmarks.ingest.plan import (
    BATCH_SIZE,
    ENVIRONMENTS,
    LOOSE,
    NUM_FINALISTS,
    SIGHTLINE,
    Entry,
    Setting,
)
from benchmarks.ingest.process import loader_environment, run_reader
from benchmarks.ingest.reader import Request
from benchmarks.ingest.sets import storage_names
from benchmarks.ingest.shuffling import quality
from benchmarks.serving.rounds import FAILED, Contestant, measure_rounds
from benchmarks.serving.steps import Figures, Steps
from cluster.environment import usable_cores

CEILING = "ceiling"
SCREENING, WORKERS, READING, MEMORY, INDEXING = "screening", "workers", "reading", "memory", "index"
PASS = "pass"


@dataclass(frozen=True)
class Layout:
    """How decoding is spread for the ceiling."""

    processes: int
    threads: int  # per process
    is_split: bool = False  # each process may run on one core only, another one for each

    @property
    def name(self) -> str:
        """Its name in tables."""
        split = ", a core each" if self.is_split else ""
        return f"{self.processes} proc x {self.threads} thr{split}"


def layouts(cores: int) -> list[Layout]:
    """Return every sensible layout for a machine."""
    alone = [Layout(1, threads) for threads in dict.fromkeys((cores, cores + 1, 2 * cores))]
    several = [Layout(cores, threads, split) for threads in (1, 2) for split in (False, True)]
    return list(dict.fromkeys([*alone, *several, Layout(cores + 1, 1), Layout(2 * cores, 1)]))


class Waves:
    """All waves of one run."""

    def __init__(self, setting: Setting, steps: Steps, root: Path) -> None:
        self.setting = setting
        self.pace = setting.pace
        self.steps = steps
        self._root = root.absolute()  # with the folders of the set
        self._s3: S3 | None = None
        self.versions: dict[str, str] = {}

    def prepare(self) -> None:
        """Make the environments; a library whose environment cannot be made is left out."""
        for entry in self.setting.entries:
            if entry.environment is None or (FAILED, READING, entry.name) in self.steps:
                continue
            try:
                made = loader_environment(entry.environment)
            except EnvironmentFailure as error:
                reason = f"its environment cannot be made: {error}"
                self.steps.add((FAILED, READING, entry.name), {"reason": reason})
            else:
                package = ENVIRONMENTS[entry.environment].package
                self.versions[package] = made.versions[package]

    def screen(self) -> list[Layout]:
        """Run every layout of the ceiling once, briefly, and return the best ones: of one process
        and of several, since either is faster at times, and what is chosen now is compared with
        for half an hour.
        """
        speeds = {}
        for layout in layouts(usable_cores()):
            key = (SCREENING, layout.name)
            if key not in self.steps:
                crew = self._crew(layout)
                per_second = crew.run(self.pace.screening_seconds)
                crew.close()
                self.steps.add(key, {"per_second": per_second})
            speeds[layout] = float(self.steps[key]["per_second"])
        best = sorted(speeds, key=lambda layout: -speeds[layout])
        alone = [layout for layout in best if layout.processes == 1]
        several = [layout for layout in best if layout.processes > 1]
        return [*alone[:1], *several[:NUM_FINALISTS]]

    def choose_workers(self) -> None:
        """Try each library that takes a number of workers with several, and keep the best."""
        for entry in self.setting.entries:
            if not entry.has_workers or (FAILED, READING, entry.name) in self.steps:
                continue
            for workers in self._worker_counts():
                if (WORKERS, entry.name, workers) in self.steps:
                    continue
                try:
                    found = self._read(entry, workers, 0, trial=True)
                except (ApartFailure, EnvironmentFailure) as error:
                    self.steps.add((FAILED, READING, entry.name), {"reason": str(error)})
                    break
                self.steps.add((WORKERS, entry.name, workers), found)

    def measure(self) -> None:
        """Take every step that has not been taken."""
        finalists = self.screen()
        self.choose_workers()
        self.index()
        self.read(finalists)
        self.remember()

    def read(self, finalists: Sequence[Layout]) -> None:
        """Measure the ceiling and every library in turns."""
        with ExitStack() as stack:
            if any(entry.is_remote for entry in self.setting.entries):
                self._s3 = stack.enter_context(serving_buckets(self._root, ("loose", "packed")))
                self.versions[self._s3.name] = self._s3.version
            crews = [self._crew(layout) for layout in finalists]
            for crew in crews:
                stack.callback(crew.close)
            windows = {crew.name: self._ceiling(crew) for crew in crews}
            contestants = [Contestant(CEILING, windows)]
            for entry in self.setting.entries:
                contestants.append(Contestant(entry.name, {PASS: self._reading(entry)}))
            measure_rounds(READING, contestants, self.pace.repetitions, self.steps)

    def index(self) -> None:
        """Measure the first batch of files that nothing is known of: all are examined before."""
        key = (INDEXING, LOOSE)
        entry = next((entry for entry in self.setting.entries if entry.name == LOOSE), None)
        if entry is None or key in self.steps:
            return
        for kept in self._root.glob("index-*.pickle"):
            kept.unlink()
        self.steps.add(key, self._read(entry, usable_cores(), 0, trial=True))

    def remember(self) -> None:
        """Measure memory by the number of images, in turns: Ray sometimes has one worker more."""
        for repetition in range(self.pace.memory_repetitions):
            for size in self.pace.memory_sizes:
                key = (MEMORY, size, repetition)
                if key not in self.steps:
                    self.steps.add(key, measure_memory(size, self.pace.memory_images))

    def best_workers(self, entry: Entry) -> int:
        """Return the number of workers with which a library was fastest."""
        tried = {
            int(key[0]): float(found["per_second"])
            for key, found in self.steps.below(WORKERS, entry.name)
        }
        return max(tried, key=lambda workers: tried[workers], default=usable_cores())

    def _worker_counts(self) -> list[int]:
        cores = usable_cores()
        if not self.pace.is_whole:
            return [cores, 2 * cores]
        return sorted({max(1, cores // 2), cores, cores + 1, 2 * cores})

    def _ceiling(self, crew: Crew) -> Callable[[], Figures]:
        def measure() -> Figures:
            per_second = crew.run(self.pace.ceiling_seconds)
            return {
                "per_second": per_second,
                "cpu_ms": crew.cpu_ms_per_image,
                "others_share": crew.others_share,
            }

        return measure

    def _reading(self, entry: Entry) -> Callable[[], Figures]:
        def measure() -> Figures:
            repetition = len(list(self.steps.below(READING, entry.name)))
            return self._read(entry, self.best_workers(entry), repetition)

        return measure

    def _read(self, entry: Entry, workers: int, seed: int, *, trial: bool = False) -> Figures:
        options = dict(entry.options)
        if entry.library == SIGHTLINE and entry.folder == "loose":
            options["index"] = str(self._kept_index(entry))
        cache = self._root / "cache"
        cache.mkdir(exist_ok=True)
        request = Request(
            module=entry.module,
            way=entry.way,
            uri=f"s3://{entry.folder}" if entry.is_remote else str(self._root / entry.folder),
            window=self.pace.trial if trial else self.pace.window,
            workers=workers,
            batch_size=BATCH_SIZE,
            seed=seed,
            state=str(cache),
            options=options,
        )
        python = sys.executable
        if entry.environment is not None:
            python = str(loader_environment(entry.environment).python)
        found = run_reader(request, python, self._s3.environment if self._s3 else None)
        keys = [key for batch in found.pop("keys") for key in batch]
        return {**found, **self._quality(entry.folder, keys), "workers": workers}

    def _quality(self, folder: str, keys: list[Any]) -> dict[str, float]:
        positions = self._positions[folder]
        if isinstance(keys[0], str):
            found = [positions["/".join(key.rsplit("/", 2)[-2:])] for key in keys]
        else:  # numbered as they lie there
            found = keys
        if len(found) < 2 * BATCH_SIZE:
            return {}
        return quality(np.array(found), len(positions), BATCH_SIZE).figures()

    @cached_property
    def _positions(self) -> Mapping[str, Mapping[str, int]]:
        """By folder: where in storage each image lies, by its class and name."""
        return {
            folder: {name: place for place, name in enumerate(storage_names(self._root / folder))}
            for folder in ("loose", "packed", "tars")
        }

    def _kept_index(self, entry: Entry) -> Path:
        return self._root / f"index-{'s3' if entry.is_remote else 'local'}.pickle"

    def _crew(self, layout: Layout) -> Crew:
        command = [
            *(sys.executable, "-m", "benchmarks.ingest.loaders.raw"),
            *(str(self._root / "loose" / "train"), str(layout.threads)),
        ]
        commands = [
            [*command, *([str(core)] if layout.is_split else [])]
            for core in range(layout.processes)
        ]
        return Crew(layout.name, commands, dict(os.environ))
