"""Images whose label a model doubts: likely wrong ones, and those torn between two classes.

The model is fitted on embeddings, in folds, so that what it says of an image never rests on that
image, on a copy of it, or on one of its group. Its probabilities are calibrated first: uncalibrated
ones are too sure, and then far too few or too many labels look wrong. cleanlab judges.

Shape legend: M images, D numbers in an embedding, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.data.audit.config import AuditConfig
from jobs.data.audit.findings import Finding
from jobs.data.audit.subject import Subject

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

# Where all of them are skipped, nothing that takes minutes is worth doing.
FINDINGS = frozenset(("mislabelled", "ambiguous", "overlapping_classes"))
DIRECTIONS = 128
UNSEEN = -30.0  # the logit of a class that a fold had no image of


@dataclass(frozen=True)
class Doubts:
    """What the model says of the rows (M,) that it could be asked about, (M, C)."""

    rows: Integers
    labels: Integers  # (M,), position in `classes`
    classes: tuple[str, ...]
    probabilities: npt.NDArray[np.float64]
    left_out: tuple[str, ...] = ()  # classes with too few images to be judged

    @property
    def accuracy(self) -> float:
        """The share of images of which it says what the label says."""
        return float((self.probabilities.argmax(axis=1) == self.labels).mean())


def ask_model(
    subject: Subject, rows: Integers, embeddings: Floats, groups: Integers, config: AuditConfig
) -> Doubts | None:
    """Return out-of-sample probabilities for images (M,) with embeddings (M, D) and groups (M,).

    None where fewer than two classes have images of as many groups as there are folds.
    """
    codes = subject.codes[rows].astype(np.int64)
    judged: list[int] = []
    left_out: list[int] = []
    for code in np.unique(codes).tolist():
        several = len(np.unique(groups[codes == code])) >= config.folds
        (judged if several else left_out).append(code)
    names = tuple(subject.names[code] for code in left_out)
    if len(judged) < 2:
        return None
    kept = np.isin(codes, judged)
    labels = np.searchsorted(judged, codes[kept])
    probabilities = out_of_sample(embeddings[kept], labels, groups[kept], config)
    classes = tuple(subject.names[code] for code in judged)
    return Doubts(rows[kept], labels, classes, probabilities, names)


def out_of_sample(
    embeddings: Floats, labels: Integers, groups: Integers, config: AuditConfig
) -> npt.NDArray[np.float64]:
    """Return calibrated probabilities (M, C), each row by a model that saw nothing of its group."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from threadpoolctl import threadpool_limits

    logits = np.full((len(labels), int(labels.max()) + 1), UNSEEN)
    folds = StratifiedGroupKFold(config.folds, shuffle=True, random_state=0)
    # One thread: matrices of this size are not worth more, and beside other work on the machine
    # threads that wait for each other are ten times slower.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of folds that lack a rare class: asked for above
        directions = main_directions(embeddings)
        for seen, unseen in folds.split(directions, labels, groups):
            # What scikit-learn calls C grows with the images, so it is given per image.
            model = LogisticRegression(C=config.fit_strength / len(seen), max_iter=200, tol=1e-3)
            model.fit(directions[seen], labels[seen])
            found = model.decision_function(directions[unseen])
            if found.ndim == 1:  # of two classes it gives one
                found = np.stack([np.zeros_like(found), found], axis=1)
            logits[np.ix_(unseen, model.classes_)] = found
    return calibrated(logits, labels)


def calibrated(logits: npt.NDArray[np.float64], labels: Integers) -> npt.NDArray[np.float64]:
    """Return the probabilities (M, C) by the one temperature that makes the labels most likely.

    One number from all images together, so it cannot adapt to the label of any of them.
    scikit-learn's own (1.9, CalibratedClassifierCV with method="temperature") left two classes at
    a loss of 0.66 where this gives 0.47, and no knowledge at all 0.69.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax, softmax

    every = np.arange(len(labels))

    def loss(log_scale: float) -> float:
        return float(-log_softmax(logits * np.exp(log_scale), axis=1)[every, labels].mean())

    best = minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded").x
    probabilities: npt.NDArray[np.float64] = softmax(logits * np.exp(best), axis=1)
    return probabilities


def main_directions(embeddings: Floats) -> Floats:
    """Return the directions in which embeddings vary most (M, K), each of unit variance.

    All images together say what they are: no label goes into it.
    """
    from sklearn.decomposition import PCA

    number = min(DIRECTIONS, embeddings.shape[1], len(embeddings) // 4)
    found: Floats = PCA(number, whiten=True, random_state=0).fit_transform(embeddings)
    return found


def check_labels(subject: Subject, doubts: Doubts, config: AuditConfig) -> Iterator[Finding]:
    """Yield likely wrong labels, images torn between classes, and classes that overlap."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    labels, probabilities = doubts.labels, doubts.probabilities
    # n_jobs: cleanlab would fork, beside Ray's threads.
    wrong = find_label_issues(labels, probabilities, filter_by="both", n_jobs=1)
    quality = get_label_quality_scores(labels, probabilities, method="self_confidence")
    wrong &= quality < config.wrong_below
    # First those where another class is certain, not those that are like no class.
    certainty = get_label_quality_scores(labels, probabilities, method="normalized_margin")
    for place in np.flatnonzero(wrong).tolist():
        best = int(probabilities[place].argmax())
        yield subject.finding(
            "mislabelled",
            int(doubts.rows[place]),
            f"{doubts.classes[labels[place]]!r} {probabilities[place, labels[place]]:.1%}, rather "
            f"{doubts.classes[best]!r} {probabilities[place, best]:.1%}",
            score=float(certainty[place]),
        )
    order = np.argsort(probabilities, axis=1)
    first, second = order[:, -1], order[:, -2]
    every = np.arange(len(labels))
    margin = probabilities[every, first] - probabilities[every, second]
    for place in np.flatnonzero((margin < config.ambiguous_margin) & ~wrong).tolist():
        names = doubts.classes[first[place]], doubts.classes[second[place]]
        yield subject.finding(
            "ambiguous",
            int(doubts.rows[place]),
            f"{names[0]!r} {probabilities[place, first[place]]:.1%}, {names[1]!r} "
            f"{probabilities[place, second[place]]:.1%}",
            score=float(margin[place]),
        )
    yield from _check_overlap(doubts, config)


def _check_overlap(doubts: Doubts, config: AuditConfig) -> Iterator[Finding]:
    from cleanlab.dataset import find_overlapping_classes

    # It prints what it returns, and counts pairs of every two classes.
    pairs: Any = find_overlapping_classes(
        doubts.labels, doubts.probabilities, class_names=list(doubts.classes)
    )
    sizes = {name: int((doubts.labels == n).sum()) for n, name in enumerate(doubts.classes)}
    for pair in pairs.to_dict("records"):
        one, other, shared = (
            pair["Class Name A"],
            pair["Class Name B"],
            pair["Num Overlapping Examples"],
        )
        share = shared / min(sizes[one], sizes[other])
        if share >= config.overlapping_share:
            yield Finding(
                "overlapping_classes",
                f"{one!r} and {other!r}: about {shared:,} images could as well have the other "
                f"label, {share:.0%} of the smaller class",
                label=one,
                score=max(0.0, 1 - share),
            )
