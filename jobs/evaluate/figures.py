"""Figures of a classifier, in all and for each label, with bootstrap intervals.

A resample of N images is drawn as the counts of a multinomial distribution over the cells of the
confusion matrix, which is the same as drawing the images, in a hundredth of the time. Average
precision needs the images: their counts are drawn, R at a time, and added up along each label's
ranking.

Shape legend: N images, L labels, R resamples, K cells of the confusion matrix that are not empty.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from jobs.evaluate.intervals import Estimate, percentile, share_interval, wilson
from jobs.evaluate.judged import Floats, Judged, Numbers
from models.label_map import UNKNOWN

RESAMPLES = 1000
# Average precision: images times labels times resamples, some 6 s of one core.
RANKING_BUDGET = 300_000_000
LEAST_RESAMPLES = 100
AT_ONCE = 25
ENDS = ("low", "high")


@dataclass(frozen=True)
class LabelFigures:
    """Figures of one label, 0 to 1. `num_images` have it, `num_answers` were answered with it."""

    name: str
    precision: Estimate
    recall: Estimate
    f1: Estimate
    average_precision: Estimate
    num_images: int
    num_answers: int


@dataclass(frozen=True)
class Figures:
    """Figures of N images."""

    num_images: int
    accuracy: Estimate  # top-1
    balanced_accuracy: Estimate  # mean recall of the labels that occur
    macro_f1: Estimate  # mean F1 of the labels that occur
    weighted_f1: Estimate  # the same, weighed by their images
    loss: float  # mean negative log-likelihood
    labels: tuple[LabelFigures, ...]
    # (L, L + 1): truth down, answer across; the last column is `unknown`
    confusion: npt.NDArray[np.int64]
    num_resamples: int
    num_ranking_resamples: int  # of average precision; 0: its intervals would take too long


def compute_figures(judged: Judged, *, resamples: int = RESAMPLES, seed: int = 0) -> Figures:
    """Return the figures of N images, N at least 1. The same images and seed give the same
    intervals.
    """
    random = np.random.default_rng(seed)
    count, num_labels = len(judged), len(judged.labels)
    confusion = _confusion(judged)
    support, answers = confusion.sum(axis=1), confusion[:, :num_labels].sum(axis=0)
    drawn = _resampled(confusion, resamples, random)
    exact = (confusion.diagonal(), support, answers)
    shares = _shares(*(values[None].astype(np.float64) for values in exact))
    resampled = _shares(*drawn)
    rankings, num_ranking = _average_precisions(judged, resamples, random)
    labels = tuple(
        _label(judged.labels[k], k, confusion, shares, resampled, rankings[k])
        for k in range(num_labels)
    )
    right = int(confusion.diagonal().sum())
    likelihood = judged.probabilities[np.arange(count), judged.truth].astype(np.float64)
    return Figures(
        num_images=count,
        accuracy=share_interval(right, count, drawn[0].sum(axis=1) / count),
        balanced_accuracy=_mean_of(labels, "recall", shares, resampled),
        macro_f1=_mean_of(labels, "f1", shares, resampled),
        weighted_f1=_mean_of(labels, "f1", shares, resampled, is_weighted=True),
        loss=float(-np.log(np.maximum(likelihood, 1e-12)).mean()),
        labels=labels,
        confusion=confusion,
        num_resamples=resamples,
        num_ranking_resamples=num_ranking,
    )


def average_precision(ranking: Floats, is_positive: npt.NDArray[np.bool_]) -> float:
    """Return the average precision of scores (N,): the mean, over the positives, of the precision
    among all that score at least as high. Not a number without a positive.
    """
    if not is_positive.any():
        return float("nan")
    order, ends, places = _ranked(ranking, is_positive)
    found = np.cumsum(is_positive[order])[ends]
    return float((found / (ends + 1)).sum() / len(places))


@dataclass(frozen=True)
class _Shares:
    """Shares of each label, (R, L); not a number where there is nothing to divide by."""

    precision: Floats
    recall: Floats
    f1: Floats
    support: Floats


def _shares(right: Floats, support: Floats, answers: Floats) -> _Shares:
    with np.errstate(invalid="ignore", divide="ignore"):
        return _Shares(right / answers, right / support, 2 * right / (support + answers), support)


def _confusion(judged: Judged) -> Numbers:
    size = len(judged.labels)
    answers = np.where(judged.answers == UNKNOWN, size, judged.answers)
    cells = np.bincount(judged.truth * (size + 1) + answers, minlength=size * (size + 1))
    return cells.reshape(size, size + 1).astype(np.int64)


def _resampled(
    confusion: Numbers, resamples: int, random: np.random.Generator
) -> tuple[Floats, Floats, Floats]:
    """Return, of each resample, the right answers, images and answers per label, (R, L) each."""
    truth, answer = np.nonzero(confusion)
    cells = confusion[truth, answer]
    size = confusion.shape[0]
    draws = random.multinomial(cells.sum(), cells / cells.sum(), resamples)  # (R, K)

    def gather(owner: Numbers, kept: npt.NDArray[np.bool_]) -> Floats:
        ones = np.ones(int(kept.sum()))
        matrix = sparse.csr_matrix((ones, (np.flatnonzero(kept), owner[kept])), (len(cells), size))
        found: Floats = matrix.T.dot(draws.T.astype(np.float64)).T
        return found

    everything = np.ones(len(cells), dtype=bool)
    return (
        gather(truth, truth == answer),
        gather(truth, everything),
        gather(answer, answer < size),
    )


def _label(
    name: str,
    at: int,
    confusion: Numbers,
    shares: _Shares,
    resampled: _Shares,
    ranking: Estimate,
) -> LabelFigures:
    right, images = int(confusion[at, at]), int(confusion[at].sum())
    answers = int(confusion[:, at].sum())
    precision = share_interval(right, answers, resampled.precision[:, at])
    recall = share_interval(right, images, resampled.recall[:, at])
    f1 = percentile(float(shares.f1[0, at]), resampled.f1[:, at])
    if f1.value in (0.0, 1.0):  # no resample differs; F1 is the harmonic mean of the two
        if f1.value:
            f1 = Estimate(1.0, _harmonic(precision.low, recall.low), 1.0)
        else:
            f1 = Estimate(0.0, 0.0, _harmonic(precision.high, recall.high))
    return LabelFigures(name, precision, recall, f1, ranking, images, answers)


def _harmonic(precision: float | None, recall: float | None) -> float:
    """Return the harmonic mean of two ends; a precision of no answer at all may be anything."""
    ends = (1.0 if precision is None else precision, 1.0 if recall is None else recall)
    return 2 / sum(1 / max(end, 1e-9) for end in ends)


def _mean_of(
    labels: tuple[LabelFigures, ...],
    figure: str,
    shares: _Shares,
    resampled: _Shares,
    *,
    is_weighted: bool = False,
) -> Estimate:
    """Return the mean of a figure over the labels that occur, in each resample those that occur
    there.
    """

    def mean(values: Floats, support: Floats) -> Floats:
        weights = support if is_weighted else (support > 0).astype(np.float64)
        known = np.nan_to_num(values)
        found: Floats = (known * weights).sum(axis=1) / weights.sum(axis=1)
        return found

    value = float(mean(getattr(shares, figure), shares.support)[0])
    if value in (0.0, 1.0):  # as of each label
        found = [getattr(each, figure) for each in labels if each.num_images]
        low, high = (float(np.mean([getattr(each, end) for each in found])) for end in ENDS)
        return Estimate(value, low, high)
    return percentile(value, mean(getattr(resampled, figure), resampled.support))


def _ranked(
    ranking: Floats, is_positive: npt.NDArray[np.bool_]
) -> tuple[Numbers, Numbers, Numbers]:
    """Return the order by falling score (N,); and of each positive the place in that order of the
    last that scores as high, and its own place (P,).
    """
    order = np.argsort(-ranking, kind="stable")
    scores = ranking[order]
    last = np.searchsorted(-scores, -scores, side="right") - 1
    places = np.flatnonzero(is_positive[order])
    return order, last[places], places


def _average_precisions(
    judged: Judged, resamples: int, random: np.random.Generator
) -> tuple[list[Estimate], int]:
    count, size = len(judged), len(judged.labels)
    affordable = RANKING_BUDGET // (count * size)
    num = 0 if affordable < LEAST_RESAMPLES else min(resamples, affordable)
    scores = [judged.probabilities[:, label].astype(np.float64) for label in range(size)]
    are_positive = [judged.truth == label for label in range(size)]
    values = [average_precision(*each) for each in zip(scores, are_positive, strict=True)]
    resampled: list[list[Floats]] = [[] for _ in range(size)]
    for start in range(0, num, AT_ONCE):  # all of them at once would take gigabytes
        drawn = _draw(count, min(AT_ONCE, num - start), random)
        for label in range(size):
            if are_positive[label].any():
                order, ends, places = _ranked(scores[label], are_positive[label])
                resampled[label].append(_resampled_ap(drawn[order], ends, places))
    found = []
    for value, is_positive, parts in zip(values, are_positive, resampled, strict=True):
        estimate = percentile(value, np.concatenate([np.zeros(0), *parts]))
        if value == 1.0 and parts:  # no resample differs
            positives = int(is_positive.sum())
            estimate = Estimate(1.0, wilson(positives, positives).low, 1.0)
        found.append(estimate)
    return found, num


def _draw(count: int, num: int, random: np.random.Generator) -> npt.NDArray[np.int32]:
    """Return how often each image is drawn in each resample, (N, R)."""
    drawn = random.multinomial(count, np.full(count, 1 / count), num)
    return np.ascontiguousarray(drawn.T, dtype=np.int32)


def _resampled_ap(ranked: npt.NDArray[np.int32], ends: Numbers, places: Numbers) -> Floats:
    """Return the average precision of each resample (R,), from how often each image was drawn
    (N, R), in the order of their scores.
    """
    above = np.cumsum(ranked, axis=0)[ends]  # (P, R)
    mine = ranked[places]
    # Positives that score alike share the place where the last of them stands.
    positives = np.cumsum(mine, axis=0)[np.searchsorted(places, ends, side="right") - 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(above > 0, positives / above, 0.0)
        found: Floats = (precision * mine).sum(axis=0) / mine.sum(axis=0)
    return found
