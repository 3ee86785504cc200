"""What a made-up model says of made-up images, with a truth that is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.special import softmax

from jobs.data import index as indexed
from jobs.data.config import DataConfig
from jobs.data.quarantine import Broken
from jobs.evaluate.assess import Seen, find_slices
from jobs.evaluate.calibration import calibrate
from jobs.evaluate.figures import compute_figures
from jobs.evaluate.judged import Judged
from jobs.evaluate.mistakes import Mistake
from jobs.evaluate.report import Confused, Report
from jobs.evaluate.thresholds import explore
from models.label_map import Reading, identity_map
from models.labels import OutputClass

LABELS = ("good", "dented", "torn")
Logits = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


def draw(
    count: int, num_labels: int = 3, *, strength: float = 2.0, seed: int = 0
) -> tuple[Logits, Numbers]:
    """Return logits (N, L) whose soft-max is exactly how likely each label is, and labels drawn by
    it: a model that is perfectly calibrated.
    """
    random = np.random.default_rng(seed)
    logits = random.normal(0, strength, (count, num_labels))
    chances = softmax(logits, axis=1)
    truth = (chances.cumsum(axis=1) < random.random((count, 1))).sum(axis=1)
    return logits, np.minimum(truth, num_labels - 1).astype(np.int64)


def judge(logits: Logits, truth: Numbers, labels: tuple[str, ...] = ()) -> Judged:
    """Return what a model with these logits says."""
    probabilities = softmax(logits, axis=1).astype(np.float32)
    names = labels or tuple(f"label {k}" for k in range(logits.shape[1]))
    return Judged(names, probabilities, probabilities.argmax(axis=1).astype(np.int64), truth)


def judge_with_a_map(
    logits: Logits, truth: Numbers, changes: dict[str, dict[str, object]]
) -> Judged:
    """Return what a model of `LABELS` says through a label map with these changes to its labels."""
    classes = [OutputClass(id=name, name=name) for name in LABELS]
    first = identity_map(classes)
    labels = tuple(each.model_copy(update=changes.get(each.id, {})) for each in first.labels)
    reading = Reading(first.model_copy(update={"labels": labels}), classes, 2)
    return Judged.by_reading(softmax(logits, axis=1).astype(np.float32), truth, reading)


def index_rows(paths: list[str], **columns: list[object]) -> pa.Table:
    """Return rows of an index, of images of 40 x 30 pixels unless something else is given."""
    given: dict[str, list[object]] = {
        "path": list(paths),
        "width": [40] * len(paths),
        "height": [30] * len(paths),
        "sha256": [f"{number:064x}" for number in range(len(paths))],
        **columns,
    }
    return pa.table(
        [
            pa.array(given[field.name], field.type)
            if field.name in given
            else pa.nulls(len(paths), field.type)
            for field in indexed.SCHEMA
        ],
        schema=indexed.SCHEMA,
    )


def make_report(judged: Judged, *, evil: str = "x", **fields: object) -> Report:
    """Return a report whose texts from the set are all `evil`."""
    rows = index_rows(
        [f"/set/a/{number}.jpg" for number in range(len(judged))],
        group=[f"{evil}{number % 2}" for number in range(len(judged))],
    )
    figures = compute_figures(judged, resamples=100)
    brightness = np.linspace(10, 200, len(judged)).astype(np.float32)
    values: dict[str, object] = {
        "model": "caps/3",
        "bundle": "/store/caps/3",
        "kind": "generic",
        "created": "today",
        "source": evil,
        "split": "test",
        "engine": "openvino fp32 on cpu",
        "judged": judged,
        "figures": figures,
        "calibration": calibrate(judged.confidence, judged.is_best_right),
        "temperature": 1.5,
        "error_without": 0.123,
        "thresholds": explore(judged, 0.95),
        "slices": find_slices(judged, Seen(rows, DataConfig(uri="/set"), "test"), brightness),
        "confused": (Confused(evil, evil, 3, 0.5),),
        "mistakes": (
            Mistake(evil, evil, evil, 0.99, 0.01, "data:image/jpeg;base64,AA", "", 0.4),
            Mistake(evil, evil, evil, 0.98, 0.01),
        ),
        "broken": (Broken(evil, evil),),
        "notes": (evil,),
        **fields,
    }
    return Report(**values)  # type: ignore[arg-type]
