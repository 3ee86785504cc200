"""What the steps of a run say: ratios, the table of everybody, what failed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.common import Report
from benchmarks.serving.large import FULL, OURS, PILLOW, SCORING
from benchmarks.serving.plan import SHARES, Setting
from benchmarks.serving.rounds import FAILED
from benchmarks.serving.steps import Steps
from benchmarks.serving.waves import (
    CEILING,
    KINDS_WAVE,
    LABELS,
    OWN,
    RAW,
    SAME,
    SCREENING,
    SIGHTLINE,
    beside,
    capacity,
)

QUIET = 0.05  # what others may take of the CPU before a run is called noisy
COLUMNS = (
    "server",
    "images/s",
    "range",
    "of the ceiling",
    *(f"p50/p99 ms at {share:.0%}" for share in SHARES),
    "not 200 at 300%",
    "MiB",
    "start s",
)


@dataclass(frozen=True)
class Behaviour:
    """What is of a server and not of one way to ask it, as it is shown."""

    rates: tuple[str, ...] = ("",) * len(SHARES)
    refused: str = ""
    memory: str = ""
    start: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the table: somebody in one way."""

    name: str
    per_second: Sequence[float]
    to_ceiling: float
    server: Behaviour = Behaviour()

    @property
    def cells(self) -> tuple[str, ...]:
        """What is shown."""
        speeds, server = self.per_second, self.server
        return (
            self.name,
            f"{statistics.median(speeds):.1f}",
            f"{min(speeds):.1f} to {max(speeds):.1f}",
            f"{self.to_ceiling:.3f}",
            *server.rates,
            server.refused,
            server.memory,
            server.start,
        )


def summarise(steps: Steps, setting: Setting, report: Report) -> None:
    """Fill the report's ratios, figures and failures from what was measured."""
    for (failed_in, name), found in steps.below(FAILED):
        report.failures[f"{name} {failed_in}"] = str(found["reason"])[:500]
    ceilings = ceiling_series(steps)
    if not ceilings or not best_of(steps, SAME, SIGHTLINE, RAW):
        return
    report.figures["ceiling_images_per_s"] = statistics.median(ceilings)
    report.figures["ceiling_layout"] = max(
        {key[0] for key, _ in steps.below(SAME, CEILING)},
        key=lambda layout: statistics.median(steps.series("per_second", SAME, CEILING, layout)),
        default="",
    )
    report.figures["raw_images_per_s"] = statistics.median(best_of(steps, SAME, SIGHTLINE, RAW))
    report.ratios["raw_to_ceiling"] = paired(best_of(steps, SAME, SIGHTLINE, RAW), ceilings)
    for window in _windows(steps, SAME, SIGHTLINE):
        if window.startswith("16 images"):
            series = steps.series("per_second", SAME, SIGHTLINE, window)
            report.ratios[f"{_key(window)}_to_ceiling"] = paired(series, ceilings)
    to_peers: dict[str, list[float]] = {SAME: [], OWN: []}
    for peer in setting.peers:
        same = best_of(steps, SAME, peer)
        if same:
            ratio = paired(best_of(steps, SAME, SIGHTLINE, RAW), same)
            report.ratios[f"raw_to_{peer}"] = ratio
            to_peers[SAME].append(ratio)
        own, ours = best_of(steps, OWN, peer), best_of(steps, OWN, beside(peer))
        if own and ours:
            ratio = paired(ours, own)
            report.ratios[f"raw_to_{peer}_own_way"] = ratio
            to_peers[OWN].append(ratio)
    for wave, how in ((SAME, "same_model"), (OWN, "own_way")):
        if to_peers[wave]:
            report.ratios[f"to_best_peer_{how}"] = min(to_peers[wave])
    _overload(steps, report)
    _starts(steps, report)
    _kinds(steps, report)
    _cpu(steps, report)
    for wave in (SAME, KINDS_WAVE):
        failed = sum(
            int(found["num_429"]) + int(found["num_other"])
            for key, found in steps.below(wave, SIGHTLINE)
        )
        if failed:
            report.failures[f"Sightline {wave}, closed loops"] = failed
    noise = statistics.median(steps.series("others_share", SAME, CEILING))
    report.machine["others_cpu_share"] = noise
    if noise > QUIET:
        report.failures["noise"] = (
            f"other processes took {noise:.0%} of the machine while the ceiling was measured: the "
            "ratios cannot be believed; run it again on a quiet machine"
        )


def rows(steps: Steps, setting: Setting) -> list[Row]:
    """Return the table: the ceiling, Sightline in each way, the peers by speed."""
    ceilings = ceiling_series(steps)
    if not ceilings or not best_of(steps, SAME, SIGHTLINE, RAW):
        return []
    found = [Row("ceiling: decode+infer, no server", ceilings, 1.0)]
    for window in _windows(steps, SAME, SIGHTLINE):
        series = steps.series("per_second", SAME, SIGHTLINE, window)
        is_best = window == _best(steps, SIGHTLINE)
        server = _behaviour(steps, SAME, SIGHTLINE) if is_best else Behaviour()
        found.append(Row(f"Sightline, {window}", series, paired(series, ceilings), server))
    for wave, how in ((SAME, "same model"), (OWN, "its own way")):
        peers = [name for name in setting.peers if best_of(steps, wave, name)]
        for name in sorted(peers, key=lambda name: -capacity(steps, wave, name)):
            series = best_of(steps, wave, name)
            ratio = statistics.median(series) / statistics.median(ceilings)
            if wave == SAME:
                ratio = paired(series, ceilings)
            found.append(Row(f"{name}, {how}", series, ratio, _behaviour(steps, wave, name)))
    generic = best_of(steps, KINDS_WAVE, SIGHTLINE, f"generic, {RAW}")
    for window in _windows(steps, KINDS_WAVE, SIGHTLINE):
        series = steps.series("per_second", KINDS_WAVE, SIGHTLINE, window)
        ratio = paired(series, generic) * paired(best_of(steps, SAME, SIGHTLINE, RAW), ceilings)
        found.append(Row(f"Sightline with three models: {window}", series, ratio))
    return found


def paired(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the ratios of each repetition."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=False))


def ceiling_series(steps: Steps) -> list[float]:
    """Return the ceiling of each repetition: the fastest of the layouts in it."""
    return _fastest(
        steps.series("per_second", SAME, CEILING, layout)
        for layout in _windows(steps, SAME, CEILING)
    )


def best_of(steps: Steps, wave: str, name: str, start: str = "") -> list[float]:
    """Return the images per second of the best window that begins so, by repetition."""
    series = [
        steps.series("per_second", wave, name, window)
        for window in _windows(steps, wave, name)
        if window.startswith(start)
    ]
    return max(series, key=statistics.median, default=[])


def _best(steps: Steps, name: str) -> str:
    windows = [each for each in _windows(steps, SAME, name) if each.startswith(RAW)]
    return max(
        windows,
        key=lambda each: statistics.median(steps.series("per_second", SAME, name, each)),
        default="",
    )


def _windows(steps: Steps, wave: str, name: str) -> list[str]:
    return list(dict.fromkeys(str(key[0]) for key, _ in steps.below(wave, name)))


def _fastest(series: Iterable[Sequence[float]]) -> list[float]:
    return [max(values) for values in zip(*series, strict=False)]


def _behaviour(steps: Steps, wave: str, name: str) -> Behaviour:
    rates, refused = [], ""
    for share in SHARES:
        p50 = steps.series("p50_ms", "rate", wave, name, share)
        p99 = steps.series("p99_ms", "rate", wave, name, share)
        rates.append(f"{statistics.median(p50):.0f}/{statistics.median(p99):.0f}" if p50 else "")
        found = [each for _, each in steps.below("rate", wave, name, share)]
        if share == SHARES[-1] and found:
            num_429 = sum(int(each["num_429"]) for each in found)
            other = sum(int(each["num_other"]) + int(each["num_unanswered"]) for each in found)
            refused = f"{num_429} x 429, {other} other"
    memory = steps.series("mib", "memory", wave, name)
    start = steps.series("seconds", "start", wave, name)
    return Behaviour(
        rates=tuple(rates),
        refused=refused,
        memory=f"{memory[0]:.0f}" if memory else "",
        start=f"{start[0]:.1f}" if start else "",
    )


def _overload(steps: Steps, report: Report) -> None:
    p99 = {share: steps.series("p99_ms", "rate", SAME, SIGHTLINE, share) for share in SHARES}
    if not all(p99.values()):
        return
    for share, values in p99.items():
        p50 = steps.series("p50_ms", "rate", SAME, SIGHTLINE, share)
        report.figures[f"p50_ms_at_{share:.0%}"] = statistics.median(p50)
        report.figures[f"p99_ms_at_{share:.0%}"] = statistics.median(values)
    overload, high = statistics.median(p99[3.0]), statistics.median(p99[0.8])
    report.ratios["overload_p99_to_p99_at_80"] = overload / high
    wrong = sum(
        int(found["num_other"]) + int(found["num_unanswered"])
        for _, found in steps.below("rate", SAME, SIGHTLINE)
    )
    report.figures["rates_neither_200_nor_429"] = wrong
    if wrong:
        report.failures["Sightline at fixed rates, neither 200 nor 429"] = wrong


def _starts(steps: Steps, report: Report) -> None:
    ready = [
        float(found["replica_s"])
        for (_, name), found in steps.below("start")
        if name == SIGHTLINE and "replica_s" in found
    ]
    if ready:
        report.figures["replica_ready_s"] = min(ready)  # the first may have filled the cache
    if (LABELS,) in steps:
        report.figures["label_update_to_all_replicas_ms"] = steps[(LABELS,)]["median_ms"]
        report.figures["label_update_to_all_replicas_ms, at most"] = steps[(LABELS,)]["most_ms"]


def _kinds(steps: Steps, report: Report) -> None:
    generic = best_of(steps, KINDS_WAVE, SIGHTLINE, f"generic, {RAW}")
    for kind, call in (("dynamic", RAW), ("embedding", "vectors")):
        series = best_of(steps, KINDS_WAVE, SIGHTLINE, f"{kind}, {call}")
        if series and generic:
            report.ratios[f"{kind}_to_generic"] = paired(series, generic)
    if ("large",) in steps:
        large = steps[("large",)]
        report.figures.update({f"12mp: {name}, ms": float(ms) for name, ms in large.items()})
        report.ratios["12mp_to_full_decode"] = large[FULL] / large[OURS]
        report.ratios["12mp_to_pillow"] = large[PILLOW] / large[OURS]
        report.ratios["12mp_scored_to_pillow_and_inference"] = (
            large[PILLOW] + large[SCORING] - large[OURS]
        ) / large[SCORING]


def _cpu(steps: Steps, report: Report) -> None:
    report.figures["ceiling_cpu_ms_per_image"] = statistics.median(
        steps.series("cpu_ms", SAME, CEILING)
    )
    best = _best(steps, SIGHTLINE)
    spent = [found["cpu_ms_by_role"] for _, found in steps.below(SAME, SIGHTLINE, best)]
    report.figures["raw_cpu_ms_per_image"] = statistics.median(sum(each.values()) for each in spent)
    for role in spent[0] if spent else ():
        ms = statistics.median(each.get(role, 0.0) for each in spent)
        if ms >= 0.05:
            report.figures[f"raw_cpu_ms_per_image, {role}"] = ms


def screened(steps: Steps) -> list[tuple[str, str]]:
    """Return every layout of the ceiling with its speed, the best first."""
    found = [(str(key[0]), float(each["per_second"])) for key, each in steps.below(SCREENING)]
    return [(name, f"{speed:.1f}") for name, speed in sorted(found, key=lambda each: -each[1])]


def _key(window: str) -> str:
    """Return the name of a window in the line of figures: forms are what batches mostly come in."""
    name = window.removesuffix(", multipart")
    return name.replace("16 images", "batch16").replace(", ", "_").replace(" ", "_").lower()
