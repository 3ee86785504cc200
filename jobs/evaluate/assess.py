"""From what a model said of images to a report. It reads no image but those of the mistakes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.environment import usable_cores
from jobs.data.config import DataConfig
from jobs.data.leave_out import root_of
from jobs.data.quarantine import Broken
from jobs.data.split import SPLIT_ALIASES
from jobs.evaluate import slices
from jobs.evaluate.calibration import calibrate, calibration_error, undo_temperature
from jobs.evaluate.compare import compare
from jobs.evaluate.config import EvaluateConfig
from jobs.evaluate.figures import compute_figures
from jobs.evaluate.judged import Judged, Numbers
from jobs.evaluate.mistakes import Mistake, describe, worst
from jobs.evaluate.outputs import Outputs
from jobs.evaluate.report import Change, Confused, Report
from jobs.evaluate.slices import Slice
from jobs.evaluate.thresholds import explore
from models.bundle import Bundle
from models.engines.base import EngineOptions
from models.label_map import Reading
from models.predictor import open_predictor

SHOWN_CONFUSED = 100


@dataclass(frozen=True)
class Seen:
    """The images that were judged: what the index says of each (N rows, in the order of the
    outputs), with the labels of the source.
    """

    rows: pa.Table
    data: DataConfig
    split: str
    broken: tuple[Broken, ...] = ()
    notes: tuple[str, ...] = ()


def assess(
    bundle: Bundle,
    reading: Reading,
    outputs: Outputs,
    seen: Seen,
    settings: EvaluateConfig,
    options: EngineOptions | None = None,
) -> Report:
    """Return the report on a bundle, with pictures of its mistakes."""
    started = time.perf_counter()
    manifest = bundle.manifest
    judged = Judged.by_reading(outputs.probabilities, outputs.truth, reading)
    found, left_off = slices.cut(find_slices(judged, seen, outputs.brightness))
    figures = compute_figures(judged, resamples=settings.resamples, seed=settings.seed)
    report = Report(
        model=manifest.label,
        bundle=bundle.uri,
        kind=manifest.kind,
        created=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        source=seen.data.uri,
        split=seen.split,
        engine=outputs.engine,
        judged=judged,
        figures=figures,
        calibration=calibrate(judged.confidence, judged.is_best_right, settings.bins),
        temperature=manifest.temperature,
        error_without=_error_without(outputs, reading, manifest.temperature, settings.bins),
        thresholds=explore(judged, settings.precision),
        slices=found,
        confused=_confused(judged, figures.confusion),
        broken=seen.broken,
        notes=(*seen.notes, *_remarks(judged), *left_off),
        label_revision=reading.revision or None,
        settings=settings.model_dump(mode="json"),
    )
    figured = time.perf_counter()
    mistakes = _mistakes(bundle, reading, judged, seen, settings, options)
    seconds = {"figures": figured - started, "mistakes": time.perf_counter() - figured}
    return replace(report, mistakes=tuple(mistakes), seconds=seconds)


def beside(
    report: Report,
    other: Judged,
    other_name: str,
    paths: Sequence[str],
    settings: EvaluateConfig,
    *,
    name: str = "",
) -> Report:
    """Return the report with a comparison to what another model said of the same N images, which
    lie at `paths`. `name` is that of the first in it, if not the report's.
    """
    judged = report.judged
    comparison = compare(
        judged,
        other,
        name=name or report.model,
        other_name=other_name,
        resamples=settings.resamples,
        seed=settings.seed,
    )
    return replace(
        report,
        comparison=comparison,
        changes=_changes(judged, other, [below(path, report.source) for path in paths]),
    )


def find_slices(
    judged: Judged, seen: Seen, brightness: npt.NDArray[np.float32]
) -> tuple[Slice, ...]:
    """Return the accuracy of images by size, brightness, source and group, the worst first."""
    rows, right = seen.rows, judged.is_right
    width = rows["width"].to_numpy(zero_copy_only=False).astype(np.float64)
    height = rows["height"].to_numpy(zero_copy_only=False).astype(np.float64)
    found = slices.by_value("size", np.minimum(width, height), right, " pixels, shorter side")
    found += slices.by_value("brightness", brightness.astype(np.float64), right, " of 255")
    found += slices.by_name("source", _sources(rows, seen.data), right)
    groups = rows["group"].to_pylist()
    if any(groups):
        found += slices.by_name("group", groups, right)
    return slices.in_order(found)


def _sources(rows: pa.Table, data: DataConfig) -> list[str | None]:
    """Return the container of each image, else its folder below the source, without the class."""
    paths = [below(path, data.uri) for path in rows["path"].to_pylist()]
    at = None if data.source != "folder" else 1 if _is_split_layout(paths) else 0
    return [
        "/".join(name for place, name in enumerate(path.split("/")[:-1]) if place != at)
        if container is None
        else below(container, data.uri)
        for path, container in zip(paths, rows["container"].to_pylist(), strict=True)
    ]


def _is_split_layout(paths: Sequence[str]) -> bool:
    """Say whether images lie in `<split>/<class>`, as `jobs.data.folder` reads them."""
    parts = (path.split("/") for path in paths)
    return all(len(names) > 2 and names[0].casefold() in SPLIT_ALIASES for names in parts)


def below(path: str, uri: str) -> str:
    """Return a path from the root of its source on: what people need, and fit to be passed on."""
    return path.removeprefix(root_of(uri).rstrip("/")).lstrip("/")


def _error_without(
    outputs: Outputs, reading: Reading, temperature: float, bins: int
) -> float | None:
    if temperature == 1.0:
        return None
    cold = undo_temperature(outputs.probabilities, temperature)
    judged = Judged.by_reading(cold, outputs.truth, reading)
    return calibration_error(judged.probabilities, judged.truth, bins)


def _confused(judged: Judged, confusion: Numbers) -> tuple[Confused, ...]:
    size = len(judged.labels)
    wrong = confusion[:, :size].copy()
    np.fill_diagonal(wrong, 0)
    images = confusion.sum(axis=1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:SHOWN_CONFUSED]
    found = []
    for truth, answer in zip(*np.unravel_index(order, wrong.shape), strict=True):
        count = int(wrong[truth, answer])
        if count:
            share = count / int(images[truth])
            found.append(
                Confused(judged.labels[int(truth)], judged.labels[int(answer)], count, share)
            )
    return tuple(found)


def _remarks(judged: Judged) -> list[str]:
    notes = []
    counts = np.bincount(judged.truth, minlength=len(judged.labels))
    without = [name for name, count in zip(judged.labels, counts, strict=True) if not count]
    if without:
        listed = ", ".join(map(repr, without[:10]))
        more = f" and {len(without) - 10} more" if len(without) > 10 else ""
        notes.append(f"no image of {listed}{more}: nothing is known of them here")
    if judged.num_unknown:
        notes.append(
            f"{judged.num_unknown:,} images are answered 'unknown' by the label map; they count as "
            "not right"
        )
    return notes


def _mistakes(
    bundle: Bundle,
    reading: Reading,
    judged: Judged,
    seen: Seen,
    settings: EvaluateConfig,
    options: EngineOptions | None,
) -> list[Mistake]:
    positions = worst(judged, settings.mistakes)
    if not len(positions):
        return []
    options = options or EngineOptions(threads=usable_cores())
    predictor = open_predictor(bundle, options)
    try:
        found = describe(
            judged,
            positions,
            seen.rows.take(pa.array(positions)),
            predictor,
            reading.owners,
            seen.data,
            pixels=settings.picture_pixels,
            num_salient=settings.salient,
            cells=settings.cells,
        )
        return [replace(one, path=below(one.path, seen.data.uri)) for one in found]
    finally:
        predictor.close()


def _changes(judged: Judged, other: Judged, paths: Sequence[str]) -> tuple[Change, ...]:
    """Return the images with two answers: lost ones first, then gained ones, the surest first."""
    mine, theirs = judged.is_right, other.is_right
    said = [judged.name(answer) for answer in judged.answers.tolist()]
    others = [other.name(answer) for answer in other.answers.tolist()]
    found = []
    for at in range(len(judged)):
        # Two right answers may differ in name only.
        if mine[at] == theirs[at] and (mine[at] or said[at] == others[at]):
            continue
        change = "lost" if theirs[at] else ("gained" if mine[at] else "both wrong")
        found.append(
            Change(
                paths[at],
                judged.labels[int(judged.truth[at])],
                said[at],
                float(judged.confidence[at]),
                others[at],
                float(other.confidence[at]),
                change,
            )
        )
    rank = {"lost": 0, "gained": 1, "both wrong": 2}
    return tuple(sorted(found, key=lambda one: (rank[one.change], -one.confidence)))
