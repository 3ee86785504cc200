"""The figures of killed jobs: a row for each run for people, and a line for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.common import OUT, Report, library_versions, machine_facts
from tests.faults.data.kinds import Kill
from tests.faults.data.timeline import Timeline

HEAD = f"{'kind':13} {'kills':>5} {'alone s':>8}  {'bytes':6} when, as second:parts"


@dataclass(frozen=True)
class Row:
    """What a run came to whose `kills` were drawn from the time that the job takes when left
    alone. Those that were to come after its end are missing.
    """

    kind: str
    alone: Timeline
    kills: Sequence[Kill]
    is_same: bool
    failure: str = ""

    def __str__(self) -> str:
        when = " ".join(f"{kill.seconds:.1f}:{kill.parts}" for kill in self.kills)
        outcome = "same" if self.is_same else "OTHERS"
        return (
            f"{self.kind:13} {len(self.kills):>5} {self.alone.end:>8.1f}  "
            f"{'FAILED' if self.failure else outcome:6} {self.failure or when}"
        )


def table(rows: Sequence[Row]) -> str:
    """Return all rows."""
    return "\n".join([HEAD, *map(str, rows)])


def save(rows: Sequence[Row], seed: int) -> str:
    """Write the figures where benchmarks leave theirs, in their form; return them as one line."""
    report = Report("data_faults", machine=machine_facts(), versions=library_versions())
    report.figures["seed"] = seed
    for kind in dict.fromkeys(row.kind for row in rows):
        of_kind = [row for row in rows if row.kind == kind]
        report.failures[kind] = sum(not row.is_same for row in of_kind)
        report.figures[f"{kind}_kills"] = sum(len(row.kills) for row in of_kind)
        report.figures[f"{kind}_alone_s"] = of_kind[0].alone.end
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "data_faults.json").write_text(report.line() + "\n")
    return report.line()
