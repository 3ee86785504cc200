"""Label maps, their history and what a change would do, as tables for people.

Names and reasons are escaped: brackets in them would be read as markup and vanish.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.errors import LabelMapError
from models.label_diff import differences
from models.label_map import LabelMap
from models.label_revision import Revision
from models.what_if import Figures, WhatIf


def print_map(revision: Revision, console: Console) -> None:
    """Print the labels of a revision."""
    table = Table(title=f"labels of {revision.model}, revision {revision.number}")
    for column in ("id", "name", "aliases", "status", "outputs", "threshold"):
        table.add_column(column)
    for label in revision.map.labels:
        status = f"merged into {label.merged_into}" if label.merged_into else label.status
        table.add_row(
            *map(escape, (label.id, label.name, ", ".join(label.aliases), status)),
            escape(", ".join(label.outputs)),
            "" if label.threshold is None else f"{label.threshold:g}",
        )
    console.print(table)
    console.print(
        f"below {revision.map.threshold:g}, or where a hidden label wins: {revision.map.unknown}",
        highlight=False,
        markup=False,
    )


def print_history(
    model: str, entries: Sequence[tuple[int, Revision | LabelMapError]], console: Console
) -> None:
    """Print all revisions, newest first."""
    table = Table(title=f"label revisions of {model}", title_justify="left")
    for column in ("revision", "time", "author", "reason", "changes"):
        table.add_column(column)
    for number, revision in entries:
        if isinstance(revision, LabelMapError):
            table.add_row(str(number), "", "", f"[red]broken[/]: {escape(str(revision))}", "")
            continue
        table.add_row(
            str(number),
            f"{revision.time:%Y-%m-%d %H:%M:%S}" if number else "",
            escape(revision.author),
            escape(revision.reason),
            ", ".join(edit["op"] for edit in revision.edits),
        )
    console.print(table)


def print_changes(before: LabelMap, after: LabelMap, console: Console) -> None:
    """Print what differs between two maps, a line each."""
    for change in differences(before, after):
        console.print(f"  {change.describe()}", highlight=False, markup=False)


def print_what_if(what_if: WhatIf, console: Console) -> None:
    """Print the figures of every label before a change and after it."""
    table = Table(
        title=f"on {what_if.num_images:,} {what_if.split} images, before -> after",
        title_justify="left",
    )
    table.add_column("label")
    for column in ("images", "accuracy", "coverage", "unknown"):
        table.add_column(column, justify="right")
    for label in what_if.labels:
        table.add_row(escape(label.label), *_cells(label.before, label.after))
    table.add_section()
    table.add_row("all", *_cells(what_if.before, what_if.after))
    console.print(table)
    console.print(
        "accuracy: right ones among those answered with a label; coverage: answered with a label",
        highlight=False,
    )


def _cells(before: Figures | None, after: Figures | None) -> list[str]:
    def cell(name: str) -> str:
        was, now = (_shown(figures, name) for figures in (before, after))
        return now if was == now else f"{was} -> [bold]{now}[/]"

    return [cell(name) for name in ("num_images", "accuracy", "coverage", "unknown")]


def _shown(figures: Figures | None, name: str) -> str:
    value = None if figures is None else getattr(figures, name)
    if value is None:
        return "-"
    return f"{value:,}" if name == "num_images" else f"{value:.3f}"
