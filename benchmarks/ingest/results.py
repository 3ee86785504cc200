"""What the steps of a run say: ratios, figures, the tables, what failed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.common import Report
from benchmarks.ingest.plan import LOOSE, PACKED, SIGHTLINE, Entry, Setting
from benchmarks.ingest.waves import CEILING, INDEXING, MEMORY, PASS, READING, SCREENING
from benchmarks.serving.results import QUIET, paired
from benchmarks.serving.rounds import FAILED
from benchmarks.serving.steps import Steps

COLUMNS = (
    "loader",
    "images/s",
    "range",
    "of the ceiling",
    "CPU ms/image",
    "first batch s",
    "workers",
    "order correlation",
    "blocks per batch",
    "design effect",
)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    per_second: Sequence[float]
    cells: tuple[str, ...]


def summarise(steps: Steps, setting: Setting, report: Report) -> None:
    """Fill the report's ratios, figures and failures from what was measured."""
    for (_, name), found in steps.below(FAILED):
        report.failures[str(name)] = str(found["reason"])[-700:]
    ceilings = ceiling_series(steps)
    ours = {name: steps.series("per_second", READING, name, PASS) for name in (PACKED, LOOSE)}
    if not ceilings:
        return
    figures, ratios = report.figures, report.ratios
    figures["ceiling_images_per_s"] = statistics.median(ceilings)
    figures["ceiling_layout"] = _best_layout(steps)
    if ours[PACKED]:
        figures["packed_images_per_s"] = statistics.median(ours[PACKED])
        figures["first_batch_s"] = _median(steps, "first_batch_s", PACKED)
        ratios["packed_to_ceiling"] = paired(ours[PACKED], ceilings)
    if ours[LOOSE]:
        figures["loose_images_per_s"] = statistics.median(ours[LOOSE])
        ratios["loose_to_ceiling"] = paired(ours[LOOSE], ceilings)
    if (INDEXING, LOOSE) in steps:
        figures["loose_first_batch_with_index_s"] = steps[(INDEXING, LOOSE)]["first_batch_s"]
    _peers(steps, setting, report, ours)
    for entry in setting.entries:
        series = steps.series("per_second", READING, entry.name, PASS)
        if entry.library == SIGHTLINE and entry.name not in (PACKED, LOOSE) and series:
            name = entry.name.removeprefix(f"{SIGHTLINE}, ").replace(", ", "_").replace(" ", "_")
            figures[f"{name}_images_per_s"] = statistics.median(series)
            ratios[f"{name}_to_ceiling"] = paired(series, ceilings)
    _memory(steps, report)
    noise = statistics.median(steps.series("others_share", READING, CEILING))
    report.machine["others_cpu_share"] = noise
    if noise > QUIET:
        report.failures["noise"] = (
            f"other processes took {noise:.0%} of the machine while the ceiling was measured: the "
            "ratios cannot be believed; run it again on a quiet machine"
        )


def _peers(steps: Steps, setting: Setting, report: Report, ours: dict[str, list[float]]) -> None:
    peers = {
        entry.name: steps.series("per_second", READING, entry.name, PASS)
        for entry in setting.entries
        if entry.library != SIGHTLINE
    }
    measured = {name: series for name, series in peers.items() if series}
    if not measured:
        return
    best = max(measured, key=lambda name: statistics.median(measured[name]))
    report.figures["best_peer"] = best
    report.figures["best_peer_images_per_s"] = statistics.median(measured[best])
    if ours[PACKED]:
        report.ratios["packed_to_best_peer"] = paired(ours[PACKED], measured[best])
    if ours[LOOSE]:
        report.ratios["loose_to_best_peer"] = paired(ours[LOOSE], measured[best])


def _memory(steps: Steps, report: Report) -> None:
    found = dict(memory_by_size(steps))
    for size, mib in found.items():
        report.figures[f"memory_{_short(size)}_mib"] = mib
    if len(found) > 1:
        small, large = min(found), max(found)
        name = f"memory_{_short(large)}_to_{_short(small)}"
        report.ratios[name] = found[large] / found[small]


def memory_by_size(steps: Steps) -> list[tuple[int, float]]:
    """Return pairs of a number of images and the median of what they took, in MiB."""
    return [(size, statistics.median(steps.series("mib", MEMORY, size))) for size in _sizes(steps)]


def _sizes(steps: Steps) -> list[int]:
    return sorted({int(key[0]) for key, _ in steps.below(MEMORY)})


def _short(count: int) -> str:
    return f"{count // 1000}k"


def find_missing(steps: Steps, setting: Setting) -> str:
    """Return what has to be measured and could not be, without which nothing can be compared."""
    if not ceiling_series(steps):
        return CEILING
    is_measured = bool(steps.series("per_second", READING, PACKED, PASS))
    return PACKED if PACKED in setting.names and not is_measured else ""


def rows(steps: Steps, setting: Setting) -> list[Row]:
    """Return the table: the ceiling, Sightline in each way, the peers by speed."""
    ceilings = ceiling_series(steps)
    if not ceilings:
        return []
    cpu = statistics.median(steps.series("cpu_ms", READING, CEILING))
    head = Row(
        "ceiling: read, decode, resize",
        ceilings,
        (*_speed("ceiling: read, decode, resize", ceilings, 1.0), f"{cpu:.2f}", *[""] * 5),
    )
    found = [head]
    for is_ours in (True, False):
        some = [
            _row(entry, steps, ceilings)
            for entry in setting.entries
            if (entry.library == SIGHTLINE) == is_ours
            and steps.series("per_second", READING, entry.name, PASS)
        ]
        found += some if is_ours else sorted(some, key=lambda row: -_middle(row.per_second))
    return found


def _row(entry: Entry, steps: Steps, ceilings: Sequence[float]) -> Row:
    series = steps.series("per_second", READING, entry.name, PASS)
    last = [found for _, found in steps.below(READING, entry.name, PASS)][-1]
    cells = (
        *_speed(entry.name, series, paired(series, ceilings)),
        f"{_median(steps, 'cpu_ms', entry.name):.2f}",
        f"{_median(steps, 'first_batch_s', entry.name):.1f}",
        str(last["workers"]) if entry.has_workers else "",
        f"{_median(steps, 'correlation', entry.name):.3f}",
        f"{_median(steps, 'blocks', entry.name):.2f}",
        f"{_median(steps, 'design_effect', entry.name):.2f}",
    )
    return Row(entry.name, series, cells)


def _speed(name: str, series: Sequence[float], to_ceiling: float) -> tuple[str, ...]:
    return (
        name,
        f"{_middle(series):.0f}",
        f"{min(series):.0f} to {max(series):.0f}",
        f"{to_ceiling:.3f}",
    )


def _middle(series: Sequence[float]) -> float:
    return statistics.median(series)


def _median(steps: Steps, figure: str, name: str) -> float:
    series = steps.series(figure, READING, name, PASS)
    return statistics.median(series) if series else math.nan


def ceiling_series(steps: Steps) -> list[float]:
    """Return the ceiling of each repetition: the fastest of the layouts in it."""
    series = [steps.series("per_second", READING, CEILING, name) for name in _layouts(steps)]
    return [max(values) for values in zip(*series, strict=False)]


def _layouts(steps: Steps) -> list[str]:
    return list(dict.fromkeys(str(key[0]) for key, _ in steps.below(READING, CEILING)))


def _best_layout(steps: Steps) -> str:
    return max(
        _layouts(steps),
        key=lambda name: statistics.median(steps.series("per_second", READING, CEILING, name)),
    )


def screened(steps: Steps) -> list[tuple[str, str]]:
    """Return every layout of the ceiling with its speed, the best first."""
    found = [(str(key[0]), float(each["per_second"])) for key, each in steps.below(SCREENING)]
    return [(name, f"{speed:.0f}") for name, speed in sorted(found, key=lambda each: -each[1])]


def memory_rows(steps: Steps) -> list[tuple[str, ...]]:
    """Return memory by the number of images, medians."""

    def median(size: int, figure: str) -> float:
        return statistics.median(steps.series(figure, MEMORY, size))

    return [
        (
            f"{size:,}",
            *(f"{median(size, name):,.0f}" for name in ("mib", "shared_mib", "per_second")),
            f"{median(size, 'first_batch_s'):.1f}",
        )
        for size in _sizes(steps)
    ]
