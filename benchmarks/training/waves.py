"""What is measured together: every way to train in turns, then a run that is killed and goes on."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.apart import ApartFailure, run_apart, shared_environment
from benchmarks.environments import EnvironmentFailure
from benchmarks.serving.rounds import FAILED, Contestant, measure_rounds
from benchmarks.serving.steps import Figures, Steps
from benchmarks.training.plan import LIGHTNING_PACKAGES, LIGHTNING_PINNED, NO_SCRIPT, Entry, Setting
from benchmarks.training.trainer import Request

TRAINING, RESUMING = "training", "resuming"
EPOCHS = "epochs"
SECONDS_TO_TRAIN = 1_800


class Waves:
    """All waves of one run."""

    def __init__(self, setting: Setting, steps: Steps, root: Path) -> None:
        self._setting, self._steps = setting, steps
        self._root = root.absolute()  # with the folders of the set
        self.versions: dict[str, str] = {}

    def prepare(self) -> None:
        """Make the environments; what cannot be installed is left out, with the reason."""
        for entry in self._setting.entries:
            if entry.environment is None or (FAILED, TRAINING, entry.name) in self._steps:
                continue
            try:
                self._python(entry)
            except EnvironmentFailure as error:
                reason = f"its environment cannot be made: {error}"
                self._steps.add((FAILED, TRAINING, entry.name), {"reason": reason})

    def measure(self) -> None:
        """Take every step that has not been taken."""
        contestants = [
            Contestant(entry.name, {EPOCHS: self._training(entry)})
            for entry in self._setting.entries
        ]
        measure_rounds(TRAINING, contestants, self._setting.pace.repetitions, self._steps)
        for repetition in range(self._setting.pace.repetitions):
            if (RESUMING, repetition) not in self._steps and (FAILED, RESUMING) not in self._steps:
                try:
                    self._steps.add((RESUMING, repetition), self._resume(repetition))
                except ApartFailure as error:
                    self._steps.add((FAILED, RESUMING), {"reason": str(error)})

    def _training(self, entry: Entry) -> Callable[[], Figures]:
        def measure() -> Figures:
            return self._run(entry, entry.options)

        return measure

    def _resume(self, repetition: int) -> Figures:
        """Kill a run with a checkpoint after each step, and let it go on."""
        pace = self._setting.pace
        per_epoch = pace.num_images // pace.batch_size
        dies_at = per_epoch + per_epoch // 2 + repetition  # in its second epoch
        with tempfile.TemporaryDirectory(prefix="slb-") as runs:
            options = {"runs": runs, "every_steps": 1}
            entry = Entry("resumed", "sightline")
            try:
                self._run(entry, {**options, "dies_at": dies_at})
            except ApartFailure as error:
                if "status -9" not in str(error):
                    raise
            else:
                raise ApartFailure(f"the run was not killed at step {dies_at}")
            found = self._run(entry, options)
        return {
            "steps_again": dies_at - int(found["first_step"]),
            "seconds_to_first_step": float(found["seconds_to_first_step"]),
        }

    def _run(self, entry: Entry, options: Mapping[str, Any]) -> dict[str, Any]:
        if entry.module == "timm_script" and "script" not in options:
            raise ApartFailure(NO_SCRIPT)
        pace = self._setting.pace
        request = Request(
            module=entry.module,
            uri=str(self._root / entry.folder),
            backbone=self._setting.backbone,
            side=pace.side,
            batch_size=pace.batch_size,
            epochs=pace.epochs,
            workers=entry.workers,
            options=dict(options),
        )
        return run_apart(
            "benchmarks.training.trainer",
            request.dump(),
            seconds=SECONDS_TO_TRAIN,
            python=self._python(entry),
        )

    def _python(self, entry: Entry) -> Path | str:
        if entry.environment is None:
            return sys.executable
        made = shared_environment(entry.environment, LIGHTNING_PACKAGES, LIGHTNING_PINNED)
        self.versions["lightning"] = made.versions["lightning"]
        return made.python
