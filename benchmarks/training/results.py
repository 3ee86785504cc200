"""What the steps of a run say: ratios, figures, the table, what failed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.common import Report
from benchmarks.serving.results import paired
from benchmarks.serving.rounds import FAILED
from benchmarks.serving.steps import Steps
from benchmarks.training.plan import OURS, OURS_RAY, PLAIN, PLAIN_KEEPING, Setting
from benchmarks.training.waves import EPOCHS, RESUMING, TRAINING

COLUMNS = ("way", "images/s", "range", "of the plain loop", "waiting for data")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    per_second: Sequence[float]
    cells: tuple[str, ...]


def series_of(steps: Steps, name: str) -> list[float]:
    """Return the images per second of each repetition."""
    return steps.series("per_second", TRAINING, name, EPOCHS)


def rows(steps: Steps, setting: Setting) -> list[Row]:
    """Return the table, the plain loop first; what failed is not in it."""
    plain = series_of(steps, PLAIN)
    found = []
    for entry in setting.entries:
        series = series_of(steps, entry.name)
        if series and plain:
            cells = (
                entry.name,
                f"{statistics.median(series):.1f}",
                f"{min(series):.1f} to {max(series):.1f}",
                f"{paired(series, plain):.3f}",
                _waiting(steps, entry.name),
            )
            found.append(Row(entry.name, series, cells))
    return found


def _waiting(steps: Steps, name: str) -> str:
    shares = _waiting_shares(steps, name)
    return f"{statistics.median(shares):.1%}" if shares else ""


def _waiting_shares(steps: Steps, name: str) -> list[float]:
    """Return the share of each epoch but the first, which waits for the first images."""
    return [
        share
        for _, found in steps.below(TRAINING, name, EPOCHS)
        for share in found.get("waiting_share", [])[1:]
    ]


def summarise(steps: Steps, setting: Setting, report: Report) -> None:
    """Fill the report's ratios, figures and failures from what was measured."""
    for key, found in steps.below(FAILED):
        report.failures[str(key[-1])] = str(found["reason"])[-700:]
    plain = series_of(steps, PLAIN)
    if not plain:
        return
    report.figures["plain_images_per_s"] = statistics.median(plain)
    measured = {
        entry.name: series
        for entry in setting.entries
        if (series := series_of(steps, entry.name)) and entry.name != PLAIN
    }
    for name, series in measured.items():
        report.ratios[f"{_key(name)}_to_plain"] = paired(series, plain)
    keeping = measured.get(PLAIN_KEEPING)
    for name in (OURS, f"{OURS_RAY}, 1 worker"):
        if keeping and name in measured:
            report.ratios[f"{_key(name)}_to_plain_keeping"] = paired(measured[name], keeping)
    peers = {
        name: series
        for name, series in measured.items()
        if not name.startswith(OURS) and name != PLAIN_KEEPING
    }
    if peers and OURS in measured:
        best = max(peers, key=lambda name: statistics.median(peers[name]))
        report.figures["best_peer"] = best
        report.ratios["sightline_to_best_peer"] = paired(measured[OURS], peers[best])
    if OURS in measured:
        each = f"{OURS}, a checkpoint each step"
        if each in measured:
            report.ratios["checkpoint_each_step_to_none"] = paired(measured[each], measured[OURS])
        if shares := _waiting_shares(steps, OURS):
            report.figures["waiting_share"] = statistics.median(shares)
    one = measured.get(f"{OURS_RAY}, 1 worker")
    for count in setting.pace.worker_counts:
        several = measured.get(f"{OURS_RAY}, {count} workers")
        if one and several:
            report.ratios[f"workers_{count}_to_1"] = paired(several, one)
    for figure in ("steps_again", "seconds_to_first_step"):
        if series := steps.series(figure, RESUMING):
            report.figures[f"resume_{figure}"] = max(series)


def _key(name: str) -> str:
    return name.lower().replace(",", "").replace(".", "").replace(" ", "_")
