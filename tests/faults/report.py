"""The figures of the fault scenarios: one row each, a table for people and a line for machines."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.common import OUT, Report, library_versions, machine_facts
from tests.faults.load import LOST, OK, Seen

HEAD = (
    f"{'scenario':34} {'sent':>6} {'failed':>7} {'lost':>5} {'failing s':>10} {'recover s':>10} "
    f"{'slowest s':>10}  what failed"
)


@dataclass(frozen=True)
class Row:
    """What one scenario came to. Times are seconds.

    `failed` are the requests that were not answered 200, `lost` those of them that were sent and
    never answered. `failing` is the time between the first failure and the last, `recovered` the
    time from the fault until the service was whole again (None where nothing broke).
    """

    scenario: str
    sent: int
    failed: int
    lost: int
    failing: float
    recovered: float | None
    slowest: float
    kinds: Mapping[str, int]
    note: str = ""

    @property
    def facts(self) -> str:
        """What failed, and what else there is to say."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        return "; ".join(filter(None, (kinds, self.note)))

    def __str__(self) -> str:
        recovered = "-" if self.recovered is None else f"{self.recovered:.1f}"
        return (
            f"{self.scenario:34} {self.sent:>6} {self.failed:>7} {self.lost:>5} "
            f"{self.failing:>10.1f} {recovered:>10} {self.slowest:>10.2f}  "
            f"{self.facts}"
        )


def row(scenario: str, seen: Seen, *, recovered: float | None = None, note: str = "") -> Row:
    """Return the figures of what the clients met."""
    kinds = Counter({kind: count for kind, count in seen.kinds.items() if kind != OK})
    when = [outcome.answered for outcome in seen.outcomes if outcome.kind != OK]
    return Row(
        scenario,
        sent=len(seen.outcomes),
        failed=sum(kinds.values()),
        lost=sum(kinds[kind] for kind in LOST),
        failing=max(when) - min(when) if when else 0.0,
        recovered=recovered,
        slowest=max((each.answered - each.asked for each in seen.outcomes), default=0.0),
        kinds=dict(kinds),
        note=note,
    )


def table(rows: Sequence[Row]) -> str:
    """Return the table of all scenarios."""
    return "\n".join([HEAD, *map(str, rows)])


def save(rows: Sequence[Row]) -> str:
    """Write the figures where benchmarks leave theirs, in their form; return them as one line."""
    report = Report("faults", machine=machine_facts(), versions=library_versions())
    for each in rows:
        name = re.sub(r"\W+", "_", each.scenario).strip("_").lower()
        report.failures[name] = each.failed
        report.figures[f"{name}_sent"] = each.sent
        report.figures[f"{name}_lost"] = each.lost
        report.figures[f"{name}_failing_s"] = each.failing
        report.figures[f"{name}_slowest_s"] = each.slowest
        if each.recovered is not None:
            report.figures[f"{name}_recovered_s"] = each.recovered
        report.figures[f"{name}_facts"] = each.facts
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "faults.json").write_text(report.line() + "\n")
    return report.line()
