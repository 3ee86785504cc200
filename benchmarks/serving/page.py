"""The page of results, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from benchmarks.common import Report

INTRODUCTION = (
    "Written by `python -m benchmarks.serving --record` on {date}. Medians of interleaved "
    "repetitions; a ratio is the median of the ratios of each repetition. Rates are Poisson "
    "arrivals at shares of each server's own capacity, and what was never answered counts with the "
    "time it has waited."
)


def as_markdown(report: Report, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return the page: the table of everybody, ratios, figures, failures, machine and versions."""
    parts = [
        "# Serving: results",
        INTRODUCTION.format(date=f"{datetime.now(UTC):%Y-%m-%d}"),
        _table(columns, cells),
        "## Ratios",
        _pairs(report.ratios),
        "## Figures",
        _pairs(report.figures),
    ]
    if report.failures:
        parts += ["## What failed", _pairs(report.failures)]
    parts += ["## Machine and versions", _pairs({**report.machine, **report.versions})]
    return "\n\n".join(parts) + "\n"


def _pairs(values: Mapping[str, float | int | str]) -> str:
    rows = [
        (name, f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split()))
        for name, value in values.items()
    ]
    return _table(("what", ""), rows)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
