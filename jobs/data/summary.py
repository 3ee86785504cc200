"""An index as a table for people. It returns text and rich renderables and prints nothing."""

from __future__ import annotations

from rich.table import Table

from jobs.data.index import Index
from jobs.data.quarantine import SHOWN
from jobs.data.split import SPLITS


def summary_table(index: Index) -> Table:
    """Return images per class and split, with the totals as the last row."""
    table = Table(title="Images per class and split", title_justify="left", show_footer=True)
    totals = {split: index.num_images(split) for split in SPLITS}
    table.add_column("class", footer="all")
    for split in SPLITS:
        table.add_column(split, justify="right", footer=f"{totals[split]:,}")
    table.add_column("all", justify="right", footer=f"{sum(totals.values()):,}")
    for name, row in index.counts.items():
        cells = [f"{row[split]:,}" for split in SPLITS]
        table.add_row(name, *cells, f"{sum(row.values()):,}")
    return table


def summary_lines(index: Index) -> list[str]:
    """Return what a user should know beside the counts: warnings, broken images, ignored files."""
    lines = [f"warning: {warning}" for warning in index.warnings]
    if index.quarantine:
        lines.append(f"left out {len(index.quarantine):,} images that cannot be used:")
        lines.extend(f"  {one.path}: {one.reason}" for one in index.quarantine[:SHOWN])
        if len(index.quarantine) > SHOWN:
            lines.append(f"  ... and {len(index.quarantine) - SHOWN:,} more")
    if index.ignored:
        lines.append(f"ignored {index.ignored:,} files that are not images by their names")
    return lines
