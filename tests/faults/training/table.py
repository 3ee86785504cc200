"""The figures of interrupted trainings: a row each for people, and a line for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.common import OUT, Report, library_versions, machine_facts
from tests.faults.training.compare import Difference
from tests.faults.training.interruptions import Interruption
from tests.faults.training.runs import STEPS, WORKERS

HEAD = (
    f"{'kind':12} {'epoch':>5} {'step':>7} {'again':>6} {'pause s':>8} {'images':>7} "
    f"{'weights':>9} {'figures':>9}"
)


@dataclass(frozen=True)
class Row:
    """What one interruption came to.

    The difference is that of its run at the end, which others may have interrupted, too.
    """

    kind: str
    run: str
    seen: Interruption
    difference: Difference | None
    tolerance: float
    failure: str = ""

    @property
    def is_like_alone(self) -> bool:
        """Whether it ended like the run that was left alone."""
        found = self.difference
        return found is not None and self.seen.at > 0 and found.is_noise(self.tolerance)

    def __str__(self) -> str:
        found, seen = self.difference, self.seen
        if found is None or seen.at == 0:
            return f"{self.kind:12} {self.run}: {self.failure or 'it was over before'}"
        epoch, step = divmod((seen.at - 1) // WORKERS, STEPS)
        images = "same" if found.same_samples and found.same_lines else "OTHERS"
        return (
            f"{self.kind:12} {epoch + 1:>5} {f'{step + 1}/{STEPS}':>7} {seen.again:>6} "
            f"{seen.pause:>8.1f} {images:>7} {found.weights:>9.1e} {found.figures:>9.1e}"
        )


def table(rows: Sequence[Row]) -> str:
    """Return all rows."""
    return "\n".join([HEAD, *map(str, rows)])


def save(rows: Sequence[Row], seed: int) -> str:
    """Write the figures where benchmarks leave theirs, in their form; return them as one line."""
    report = Report("training_faults", machine=machine_facts(), versions=library_versions())
    report.figures["seed"] = seed
    for kind in dict.fromkeys(row.kind for row in rows):
        of_kind = [row for row in rows if row.kind == kind]
        found = [row.difference for row in of_kind if row.difference is not None]
        report.failures[kind] = sum(not row.is_like_alone for row in of_kind)
        report.figures[f"{kind}_points"] = len(of_kind)
        report.figures[f"{kind}_most_steps_again"] = max(row.seen.again for row in of_kind)
        report.figures[f"{kind}_longest_pause_s"] = max(row.seen.pause for row in of_kind)
        report.figures[f"{kind}_largest_weight_difference"] = max(
            (each.weights for each in found), default=float("nan")
        )
        report.figures[f"{kind}_largest_figure_difference"] = max(
            (each.figures for each in found), default=float("nan")
        )
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "training_faults.json").write_text(report.line() + "\n")
    return report.line()
