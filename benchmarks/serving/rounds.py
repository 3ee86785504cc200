"""Measure in turns: each sleeps while another is measured, and each repetition begins with another
one, so that what the machine does meanwhile hits all alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from benchmarks.serving.steps import Figures, Steps

# What a server can do wrong while it is measured; it is then left out, with the reason. Whatever
# that is, forty minutes of others are not lost for it.
FAILED = "failed"  # (FAILED, wave, name) is a step, too
FAILURES = (Exception,)


@dataclass
class Contestant:
    """Something to measure, in one or several ways."""

    name: str
    windows: Mapping[str, Callable[[], Figures]]  # by what is measured
    awake: Callable[[], AbstractContextManager[None]] = field(default=nullcontext)


def measure_rounds(
    wave: str, contestants: Sequence[Contestant], repetitions: int, steps: Steps
) -> None:
    """Add a step (wave, name, window, repetition) for each window that has none yet."""
    for repetition in range(repetitions):
        first = repetition % len(contestants)
        for contestant in (*contestants[first:], *contestants[:first]):
            missing = {
                window: measure
                for window, measure in contestant.windows.items()
                if (wave, contestant.name, window, repetition) not in steps
            }
            if not missing or (FAILED, wave, contestant.name) in steps:
                continue
            try:
                with contestant.awake():
                    for window, measure in missing.items():
                        found = measure()
                        if not found["per_second"]:
                            raise RuntimeError(f"{window}: not one request was answered with 200")
                        steps.add((wave, contestant.name, window, repetition), found)
            except FAILURES as error:
                steps.add((FAILED, wave, contestant.name), {"reason": str(error)})


def is_whole(
    wave: str, windows: Mapping[str, Sequence[str]], repetitions: int, steps: Steps
) -> bool:
    """Whether all windows of a wave, by contestant, are measured or failed for good."""
    return all(
        (FAILED, wave, name) in steps
        or all(
            (wave, name, window, repetition) in steps
            for window in of_one
            for repetition in range(repetitions)
        )
        for name, of_one in windows.items()
    )
