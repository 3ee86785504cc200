"""The metrics of a replica, of a model or the catalog: their names, their figures now, and the
thread that hands these on.

A figure is cumulative. Where it goes is up to a sink: Ray's metrics (`ray_metrics`), or a
dictionary (`PlainSink`). It knows nothing of Ray.

A distribution is handed on as three metrics, `_bucket`, `_sum` and `_count`, in the form that
Prometheus gives its histograms.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from models.manifest import Manifest
from serve_app.histograms import Distribution
from serve_app.logs import OURS
from serve_app.meters import Counted, Meters, batch_sizes
from serve_app.model import ServedModel

logger = logging.getLogger(OURS)

PREFIX = "sightline_"
SECONDS_BETWEEN = 5.0  # twice in the ten seconds after which Ray looks, and forgets gauges
ALL = ("model", "version")  # the tags of every metric of a model
CALL = ("call", "protocol")


@dataclass(frozen=True)
class Metric:
    """One metric. `counter`s only rise; Prometheus sees `ray_` before the name."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    about: str
    tags: tuple[str, ...] = ()  # beside those of every metric

    @property
    def full_name(self) -> str:
        """The name with our prefix."""
        return PREFIX + self.name


@dataclass(frozen=True)
class Figure:
    """The value of a metric for some values of its tags."""

    name: str
    kind: Literal["counter", "gauge"]
    about: str
    tags: tuple[tuple[str, str], ...]
    value: float


REQUESTS = Metric("requests_total", "counter", "Requests answered, refusals included", CALL)
ERRORS = Metric(
    "errors_total", "counter", "Requests answered with an error, by its code", (*CALL, "code")
)
REQUEST = Metric(
    "request_seconds", "histogram", "From the head of a scoring request to its answer", CALL
)
INSIDE = Metric("requests_inside", "gauge", "Scoring requests that are being answered")
STAGES = {
    "queue": Metric("queue_seconds", "histogram", "An image's wait for a thread or a batch"),
    "decode": Metric("decode_seconds", "histogram", "Decoding and resizing an image"),
    "infer": Metric("infer_seconds", "histogram", "The engine's run that an image was part of"),
}
BATCH = Metric("batch_images", "histogram", "Images in a run of the engine")
IMAGE_ERRORS = Metric(
    "image_errors_total",
    "counter",
    "Images with an error beside others without",
    ("code",),
)
PREDICTIONS = Metric(
    "predictions_total", "counter", "Images answered with a label, by it", ("label",)
)
UNKNOWN = Metric("unknown_total", "counter", "Images answered with the label map's `unknown`")
CONFIDENCE = Metric("confidence", "histogram", "The probability of the winning label, 0 to 1")
REVISION = Metric("label_revision", "gauge", "The label revision that counts in this replica")
REFRESH_FAILURES = Metric(
    "label_refresh_failures_total",
    "counter",
    "Failed looks into the label store, and unreadable revisions",
)
ENGINE = Metric(
    "engine_info", "gauge", "1; the tags say what runs", ("engine", "precision", "device", "bundle")
)
PROOF_DIFFERENCE = Metric(
    "proof_probability_difference", "gauge", "The largest one in the proof of the engine"
)
PROOF_COSINE = Metric("proof_cosine", "gauge", "The lowest one in the proof of the engine")
PROOF_SECONDS = Metric("proof_seconds", "gauge", "How long the proof of the engine took")

METRICS: tuple[Metric, ...] = (
    *(REQUESTS, ERRORS, REQUEST, INSIDE, *STAGES.values(), BATCH, IMAGE_ERRORS),
    *(PREDICTIONS, UNKNOWN, CONFIDENCE, REVISION, REFRESH_FAILURES),
    *(ENGINE, PROOF_DIFFERENCE, PROOF_COSINE, PROOF_SECONDS),
)


Collect = Callable[[], Sequence[Figure]]


class Sink(Protocol):
    """Where figures go."""

    def write(self, figures: Sequence[Figure]) -> None:
        """Take all figures of this moment."""
        ...


class PlainSink:
    """Keeps the last figures in this process."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}

    def write(self, figures: Sequence[Figure]) -> None:
        """Take all figures of this moment."""
        for each in figures:
            self.values[each.name, frozenset(each.tags)] = each.value

    def value(self, name: str, **tags: str) -> float:
        """Return the sum of all figures of a metric that have these tags."""
        wanted = set(tags.items())
        return sum(
            value for (of, having), value in self.values.items() if of == name and wanted <= having
        )


class Exporter:
    """Hands figures to a sink, by a thread, every few seconds and at the end."""

    def __init__(self, collect: Collect, sink: Sink, seconds: float = SECONDS_BETWEEN) -> None:
        """`collect` returns all figures of the moment, as `figures_of` does of a model."""
        self._collect, self._sink, self._seconds = collect, sink, seconds
        self._ended = threading.Event()
        self._problem = ""
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def write(self) -> None:
        """Hand on the figures of this moment. Never raises."""
        try:
            self._sink.write(self._collect())
            self._problem = ""
        # metrics must never take the replica down, nor fill its log
        except Exception as error:
            if repr(error) != self._problem:
                logger.exception("metrics are not handed on")
            self._problem = repr(error)

    def close(self) -> None:
        """Hand on the last figures and end the thread."""
        self._ended.set()
        self._thread.join(self._seconds)

    def _run(self) -> None:
        self.write()
        while not self._ended.wait(self._seconds):
            self.write()
        self.write()


def figures_of(model: ServedModel) -> list[Figure]:
    """Return every figure of a replica of a model as it is now."""
    meters = model.watch.meters
    manifest = model.manifest
    everywhere = (("model", manifest.name), ("version", str(manifest.version)))
    found = [*_of_state(model)]
    if meters is not None:
        counted = meters.counted()
        found += [*_of_requests(counted), *_of_images(counted)]
        for stage, distribution in model.statistics.stages().items():
            found += _distribution(STAGES[stage], distribution)
    runs = model.statistics.counters()["batches"]
    sizes = {size: count for size, (count, *_) in runs.items()}
    found += _distribution(BATCH, batch_sizes(sizes))
    return [
        Figure(each.name, each.kind, each.about, (*everywhere, *each.tags), each.value)
        for each in found
    ]


def figures_of_requests(meters: Meters) -> list[Figure]:
    """Return the figures of an application without a model as they are now."""
    return [*_of_requests(meters.counted())]


def bundle_digest(manifest: Manifest) -> str:
    """Return a digest by which two bundles with the same artifacts are the same."""
    listed = sorted(f"{artifact.path} {artifact.sha256}" for artifact in manifest.artifacts)
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()[:16]


def _of_state(model: ServedModel) -> Iterator[Figure]:
    predictor = model.predictor
    engine, proof = predictor.engine, predictor.proof
    yield _figure(INSIDE, model.gate.num_inside)
    if model.kind.has_label_map:
        yield _figure(REVISION, model.labels.current().revision)
        yield _figure(REFRESH_FAILURES, model.labels.num_failures)
    about = (engine.name, engine.precision, engine.device, bundle_digest(model.manifest))
    yield _figure(ENGINE, 1, *about)
    yield _figure(PROOF_DIFFERENCE, proof.largest_probability_difference)
    yield _figure(PROOF_COSINE, proof.lowest_cosine)
    yield _figure(PROOF_SECONDS, proof.seconds)


def _of_requests(counted: Counted) -> Iterator[Figure]:
    for calls, count in counted.requests.items():
        yield _figure(REQUESTS, count, *calls)
    for error, count in counted.errors.items():
        yield _figure(ERRORS, count, *error)
    for calls, distribution in counted.request_seconds.items():
        yield from _distribution(REQUEST, distribution, *calls)


def _of_images(counted: Counted) -> Iterator[Figure]:
    for code, count in counted.image_errors.items():
        yield _figure(IMAGE_ERRORS, count, code)
    for label, count in counted.predictions.items():
        yield _figure(PREDICTIONS, count, label)
    if counted.confidence.count:
        yield _figure(UNKNOWN, counted.unknown)
        yield from _distribution(CONFIDENCE, counted.confidence)


def _figure(metric: Metric, value: float, *tags: str) -> Figure:
    assert metric.kind != "histogram"
    named = tuple(zip(metric.tags, tags, strict=True))
    return Figure(metric.full_name, metric.kind, metric.about, named, value)


def _distribution(metric: Metric, found: Distribution, *tags: str) -> Iterator[Figure]:
    named = tuple(zip(metric.tags, tags, strict=True))
    name, about = metric.full_name, metric.about
    ends = [*(f"{bound:g}" for bound in found.bounds), "+Inf"]
    for end, count in zip(ends, found.counts, strict=True):
        yield Figure(f"{name}_bucket", "gauge", about, (*named, ("le", end)), count)
    yield Figure(f"{name}_sum", "gauge", about, named, found.total)
    yield Figure(f"{name}_count", "gauge", about, named, found.count)
