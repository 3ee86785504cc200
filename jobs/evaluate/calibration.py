"""Whether a confidence is what it says: reliability, the expected calibration error, and the one
temperature that mends it (Guo et al. 2017, arXiv 1706.04599).

Dividing the logits by a temperature changes no answer, only how sure it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from jobs.evaluate.judged import Flags, Floats, Numbers

BINS = 15  # as in Guo et al.
LEAST_IMAGES = 20
CHANCES = 200
ROWS_AT_ONCE = 8192
# A temperature at an end of this range was not found: the loss falls on and on.
COLDEST, HOTTEST = 0.05, 20.0


@dataclass(frozen=True)
class Bin:
    """Images whose confidence lies above `low`, up to `high`: its mean, and the share of right
    answers; both None without an image.
    """

    low: float
    high: float
    num_images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """How well confidences and right answers agree.

    `chance` is the ECE that a perfect model would have on as many images with these confidences, by
    the luck of which are right: the mean, and what 95 of 100 such models stay below (consistency
    resampling, Bröcker and Smith 2007).
    """

    error: float  # expected calibration error (ECE), 0 to 1
    bins: tuple[Bin, ...]
    chance: float
    chance_bound: float


@dataclass(frozen=True)
class Temperature:
    """A temperature that was fitted, or 1 with the reason why not. The figures are those of the
    images it was fitted on, without and with it.
    """

    value: float
    num_images: int
    loss_before: float | None = None
    loss_after: float | None = None
    error_before: float | None = None
    error_after: float | None = None
    reason: str = ""  # why it is 1


def calibrate(
    confidence: Floats, is_right: Flags, num_bins: int = BINS, *, seed: int = 0
) -> Calibration:
    """Return the reliability of confidences (N,) in bins of equal width, and the ECE: the mean
    distance of confidence and accuracy of the bins, by their images.
    """
    edges = np.linspace(0, 1, num_bins + 1)
    # Bins are open below and closed above, as in Guo et al.; 0 belongs to the first.
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, num_bins - 1)
    counts = np.bincount(place, minlength=num_bins)
    sure = np.bincount(place, weights=confidence, minlength=num_bins)
    right = np.bincount(place, weights=is_right.astype(np.float64), minlength=num_bins)
    error = float(np.abs(sure - right).sum() / max(1, len(confidence)))
    bins = tuple(
        Bin(
            float(edges[k]),
            float(edges[k + 1]),
            int(counts[k]),
            float(sure[k] / counts[k]) if counts[k] else None,
            float(right[k] / counts[k]) if counts[k] else None,
        )
        for k in range(num_bins)
    )
    random = np.random.default_rng(seed)
    lucky = [
        np.bincount(place, weights=random.random(len(place)) < confidence, minlength=num_bins)
        for _ in range(CHANCES)
    ]
    chances = np.abs(sure - np.array(lucky)).sum(axis=1) / max(1, len(confidence))
    return Calibration(error, bins, float(chances.mean()), float(np.quantile(chances, 0.95)))


def calibration_error(
    probabilities: npt.NDArray[np.floating], truth: Numbers, num_bins: int = BINS
) -> float:
    """Return the ECE of probabilities (N, C)."""
    best = probabilities.argmax(axis=1)
    return calibrate(probabilities.max(axis=1).astype(np.float64), best == truth, num_bins).error


def undo_temperature(
    probabilities: npt.NDArray[np.float32], temperature: float
) -> npt.NDArray[np.float32]:
    """Return the probabilities (N, C) that a model would give with a temperature of 1."""
    cold = np.empty_like(probabilities)
    for start in range(0, len(probabilities), ROWS_AT_ONCE):  # float64 takes twice the memory
        rows = slice(start, start + ROWS_AT_ONCE)
        logits = np.log(np.maximum(probabilities[rows].astype(np.float64), 1e-30))
        cold[rows] = softmax(logits * temperature, axis=1)
    return cold


def fit_temperature(logits: npt.NDArray[np.floating], truth: Numbers) -> Temperature:
    """Return the temperature with the lowest mean negative log-likelihood of logits (N, C).

    It is 1, with the reason, where there are too few images, where the loss falls on to an end of
    the range (of images that are all answered rightly, the surer the better), or where nothing is
    gained.
    """
    count = len(truth)
    if count < LEAST_IMAGES:
        return Temperature(
            1.0, count, reason=f"{count} validation images are too few: {LEAST_IMAGES} are needed"
        )
    logits = np.asarray(logits, np.float64)
    if not np.isfinite(logits).all():
        return Temperature(1.0, count, reason="the network gives values that are not finite")

    def loss(log_temperature: float) -> float:
        scores = log_softmax(logits / np.exp(log_temperature), axis=1)
        return float(-scores[np.arange(count), truth].mean())

    ends = np.log([COLDEST, HOTTEST])
    found = minimize_scalar(loss, bounds=tuple(ends), method="bounded", options={"xatol": 1e-5})
    before, after = loss(0.0), float(found.fun)
    value = float(np.exp(found.x))
    reason = ""
    if not after < before:
        reason = "1 is the best"
    # Of a model that is right about all images and sure of it the loss is exactly 0 from some
    # temperature down to the end: the search stops anywhere there.
    elif np.abs(ends - found.x).min() < 0.02 or min(map(loss, ends)) <= after:
        reason = f"no temperature from {COLDEST:g} to {HOTTEST:g} is best: the loss falls on"
    used = 1.0 if reason else value
    return Temperature(
        used,
        count,
        before,
        before if reason else after,
        calibration_error(softmax(logits, axis=1), truth),
        calibration_error(softmax(logits / used, axis=1), truth),
        reason,
    )
