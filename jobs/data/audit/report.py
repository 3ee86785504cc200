"""What an audit gives: findings, counts, and an account of how they were made. Also as tables for a
terminal and as JSON for machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.data.audit.findings import (
    KINDS,
    SEVERITIES,
    Finding,
    Severity,
    count_kinds,
    count_severities,
)
from jobs.data.split import SPLITS

COLOURS: dict[Severity, str] = {"error": "red", "warning": "yellow", "info": "cyan"}
SHOWN_CLASSES = 50


@dataclass(frozen=True)
class Report:
    """One audit. `counts[class][split]` are usable images; `model` is "" without one."""

    uri: str
    created: str
    num_images: int
    counts: dict[str, dict[str, int]]
    findings: list[Finding]  # in the order of `findings.in_order`
    notes: Sequence[str] = ()
    model: str = ""
    model_accuracy: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def num_left_out(self) -> int:
        """How many images training is advised to leave out."""
        return len({one.path for one in self.findings if one.leave_out})

    def reaches(self, severity: Severity) -> bool:
        """Say whether there is a finding as bad as that, or worse."""
        bad = SEVERITIES[: SEVERITIES.index(severity) + 1]
        return any(one.severity in bad for one in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return all but the findings about single images, which stand in the table."""
        return {
            "uri": self.uri,
            "created": self.created,
            "num_images": self.num_images,
            "counts": self.counts,
            "findings": count_kinds(self.findings),
            "severities": count_severities(self.findings),
            "about_the_set": [
                {
                    "finding": one.kind,
                    "severity": one.severity,
                    "label": one.label,
                    "detail": one.detail,
                }
                for one in self.findings
                if one.path is None
            ],
            "num_left_out": self.num_left_out,
            "notes": list(self.notes),
            "model": self.model or None,
            "model_accuracy": self.model_accuracy,
            "settings": self.settings,
            "seconds": {stage: round(value, 1) for stage, value in self.seconds.items()},
        }


def show(report: Report, console: Console) -> None:
    """Print the counts, and the findings by kind with an example of each."""
    console.print(_counts_table(report.counts))
    console.print(_findings_table(report.findings))
    for note in report.notes:
        console.print(f"[yellow]note:[/] {escape(note)}", highlight=False)


def _counts_table(counts: dict[str, dict[str, int]]) -> Table:
    table = Table(title="usable images", title_justify="left")
    table.add_column("class")
    for name in (*SPLITS, "all"):
        table.add_column(name, justify="right")
    by_size = sorted(counts.items(), key=lambda item: -sum(item[1].values()))
    for name, row in by_size[:SHOWN_CLASSES]:
        table.add_row(
            escape(name), *(f"{row[split]:,}" for split in SPLITS), f"{sum(row.values()):,}"
        )
    if len(by_size) > SHOWN_CLASSES:
        table.add_row(f"... {len(by_size) - SHOWN_CLASSES:,} more", "", "", "", "")
    table.add_section()
    totals = [sum(row[split] for row in counts.values()) for split in SPLITS]
    table.add_row("all", *(f"{total:,}" for total in totals), f"{sum(totals):,}")
    return table


def _findings_table(findings: Sequence[Finding]) -> Table:
    table = Table(title="findings", title_justify="left")
    table.add_column("")
    table.add_column("finding")
    table.add_column("number", justify="right")
    table.add_column("the first of them", overflow="fold")
    first: dict[str, Finding] = {}
    for one in findings:
        first.setdefault(one.kind, one)
    counts = count_kinds(findings)
    for kind, example in first.items():
        severity = KINDS[kind].severity
        where = f"{example.path}: " if example.path else ""
        table.add_row(
            f"[{COLOURS[severity]}]{severity}[/]",
            KINDS[kind].title,
            f"{counts[kind]:,}",
            escape(where + example.detail),
        )
    return table
