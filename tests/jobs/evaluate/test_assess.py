"""What a report is put together from: every setting counts, and what is left off is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from jobs.data.config import DataConfig
from jobs.evaluate.assess import Seen, assess
from jobs.evaluate.calibration import calibrate
from jobs.evaluate.config import EvaluateConfig
from jobs.evaluate.outputs import Outputs
from jobs.evaluate.report import Report
from jobs.evaluate.slices import MOST_PER_TRAIT
from models.bundle import open_bundle
from models.label_map import first_reading
from tests.bundles import tiny_bundle
from tests.jobs.evaluate.answers import LABELS, draw, index_rows


def report_on(folder: Path, *, temperature: float = 1.0, **settings: object) -> Report:
    """Return the report on made-up outputs, whose images are of 60 groups."""
    bundle = open_bundle(tiny_bundle(folder, classes=LABELS), cache=folder / "cache")
    manifest = bundle.manifest.model_copy(update={"temperature": temperature})
    logits, truth = draw(1200)
    outputs = Outputs(
        softmax(logits, axis=1).astype(np.float32),
        truth,
        np.arange(1200),
        np.full(1200, 90, np.float32),
        "openvino fp32 on cpu",
    )
    rows = index_rows(
        [f"/set/{n}.jpg" for n in range(1200)], group=[f"part {n % 60}" for n in range(1200)]
    )
    return assess(
        replace(bundle, manifest=manifest),
        first_reading(manifest.classes),
        outputs,
        Seen(rows, DataConfig(uri="/set"), "test"),
        EvaluateConfig.model_validate({"mistakes": 0, "resamples": 100, **settings}),
    )


def test_the_slices_that_are_left_off_are_counted(tmp_path: Path) -> None:
    report = report_on(tmp_path)
    assert len(report.slices) == MOST_PER_TRAIT
    assert report.notes == ("of 60 slices by group the worst 50 are listed and 10 left off",)


def test_the_error_without_the_temperature_is_told_in_the_same_bins(tmp_path: Path) -> None:
    """With 15 bins beside the 2 that were asked for, the two could not be compared."""
    report = report_on(tmp_path, temperature=1.5, bins=2)
    cold = softmax(np.log(report.judged.probabilities.astype(np.float64)) * 1.5, axis=1)
    is_right = cold.argmax(axis=1) == report.judged.truth
    assert report.error_without == pytest.approx(
        calibrate(cold.max(axis=1), is_right, 2).error, abs=1e-6
    )
    assert report.error_without != pytest.approx(calibrate(cold.max(axis=1), is_right, 15).error)
