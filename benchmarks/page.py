"""The page of results, in Markdown: a section for each benchmark that is recorded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.common import Report


def as_markdown(
    title: str,
    introduction: str,
    report: Report,
    columns: Sequence[str],
    cells: Sequence[Sequence[str]],
) -> str:
    """Return a section: the table of everybody, ratios, figures, failures, machine and versions."""
    parts = [
        f"# {title}: results",
        f"Written by `python -m benchmarks.{report.benchmark} --record` on "
        f"{datetime.now(UTC):%Y-%m-%d}. {introduction}",
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


def write_section(path: Path, title: str, section: str) -> None:
    """Put a section into the page in place of the one that was there, else at its end."""
    text = path.read_text() if path.exists() else ""
    parts = [part for part in re.split(r"(?m)^(?=# )", text) if part.strip()]
    head = f"# {title}: results"
    places = [place for place, part in enumerate(parts) if part.startswith(head)]
    if places:
        parts[places[0]] = section
    else:
        parts.append(section)
    path.write_text("\n".join(part.rstrip("\n") + "\n" for part in parts))


def _pairs(values: Mapping[str, float | int | str]) -> str:
    rows = [
        (name, f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split()))
        for name, value in values.items()
    ]
    return _table(("what", ""), rows)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
