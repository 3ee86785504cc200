"""An opened, proven model: bytes or pixels in, labels and embeddings out.

`open_predictor` walks the configured engines in order and keeps the first that reproduces the
bundle's reference outputs, in the fastest precision that does. Nothing falls back silently: every
refusal is logged, kept on the predictor, and all of them are named if none fits. It knows nothing
of HTTP or Ray.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from models.bundle import Bundle
from models.engines.base import Engine, EngineOptions, Images, find_engine
from models.errors import BundleError, EngineError, ProofError, SightlineError
from models.kinds import Kind, find_kind
from models.label_map import first_reading
from models.labels import Answer, Scores
from models.manifest import Manifest, Tolerance
from models.preprocess import DEFAULT_LIMITS, Image, ImageLimits, prepare
from models.stopwatch import part

logger = logging.getLogger(__name__)

REFERENCE = "reference.npz"
LENGTH_TOLERANCE = 0.02  # of an embedding's length; eight bits of bf16 in each value are 0.004

# How many times as fast a precision must be for what it loses, and by how many milliseconds.
WORTH_IT, WORTH_MS = 1.2, 0.2
LEAST_TURNS, COMPARISON_TURNS = 5, 10
COMPARISON_SECONDS = 0.3  # beyond which there are no more turns than the least

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """What the network says of N images. `probabilities` is None for kinds without classes."""

    probabilities: Floats | None  # (N, C), rows sum to 1
    embedding: Floats  # (N, D), rows of unit length

    def checked(self) -> Self:
        """Return this. Raises `EngineError` for outputs that are no finite numbers, as an overflow
        of half precision gives: no label may be read from them.
        """
        for name, values in (("probabilities", self.probabilities), ("embedding", self.embedding)):
            if values is not None and not np.isfinite(values).all():
                raise EngineError(
                    f"the engine gave {name} that are no finite numbers for this image; serve with "
                    "precision fp32, or with another engine"
                )
        return self


@dataclass(frozen=True)
class Proof:
    """How close an engine came to the reference outputs of the bundle."""

    num_images: int
    largest_probability_difference: float
    lowest_cosine: float
    labels_equal: bool
    seconds: float


@dataclass(frozen=True)
class _Proven:
    engine: Engine
    proof: Proof


class Predictor:
    """A bundle, the engine that runs it, and the proof that the two fit. Safe to share by
    threads.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        proof: Proof,
        refusals: Sequence[str] = (),
        compared: Mapping[str, float] | None = None,
    ) -> None:
        """`refusals` are the engines that cannot serve the bundle here, and why; `compared` how
        many milliseconds an image took in each precision, where there was a choice.
        """
        self.bundle = bundle
        self.engine = engine
        self.proof = proof
        self.refusals = tuple(refusals)
        self.compared = dict(compared or {})
        self.manifest: Manifest = bundle.manifest
        self.kind: Kind = find_kind(bundle.manifest.kind)
        self._pool = ThreadPoolExecutor(engine.feeding.parallel, thread_name_prefix="predict")

    def prepare(self, data: bytes | memoryview, limits: ImageLimits = DEFAULT_LIMITS) -> Image:
        """Decode one encoded image to the model's input (H, W, 3). Raises `ImageError`."""
        return prepare(data, self.manifest.preprocess, limits)

    def predict(self, images: Images) -> Prediction:
        """Run uint8 images (N, H, W, 3), split in the way that the engine likes to be fed.

        Raises `EngineError` if the shape is not the model's.
        """
        self._check_shape(images)
        chunks = list(_chunks(images, self.engine))
        if len(chunks) == 1:
            return _as_prediction([self.engine.run(chunks[0])], self.kind)
        return _as_prediction(list(self._pool.map(self.engine.run, chunks)), self.kind)

    def classify(
        self, prediction: Prediction, *, top_k: int = 5, scores: Scores = "top"
    ) -> list[Answer]:
        """Put the names of the model's own classes to the probabilities, one answer per image."""
        if prediction.probabilities is None:
            raise EngineError(f"model {self.manifest.label} has no classes (kind {self.kind.name})")
        reading = first_reading(self.manifest.classes)
        return [reading.read(row, top_k=top_k, scores=scores) for row in prediction.probabilities]

    def close(self) -> None:
        """Free the engine and its threads."""
        self._pool.shutdown(wait=True)
        self.engine.close()

    def _check_shape(self, images: Images) -> None:
        spec = self.manifest.preprocess
        expected = (spec.height, spec.width, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected:
            raise EngineError(
                f"model {self.manifest.label} takes uint8 images of shape (N, {spec.height}, "
                f"{spec.width}, 3), "
                f"got {images.dtype} {images.shape}"
            )


def open_predictor(bundle: Bundle, options: EngineOptions | None = None) -> Predictor:
    """Open the first configured engine that passes the bundle's proof, in the fastest precision
    that does.

    Raises `EngineError` listing every engine tried with its reason if none does.
    """
    options = options or EngineOptions()
    refusals: list[str] = []

    def refuse(reason: str) -> None:
        refusals.append(reason)
        logger.warning("%s: engine %s", bundle.manifest.label, reason)

    for name in options.engines:
        try:
            precisions = find_engine(name).precisions(options)
        except EngineError as error:
            refuse(f"{name}: {error}")
            continue
        with ExitStack() as opened:
            found: list[_Proven] = []
            for precision in precisions:
                try:
                    found.append(_open_proven(bundle, name, precision, options))
                except (EngineError, ProofError) as error:
                    refuse(f"{name} {precision}: {error}")
                    continue
                opened.callback(found[-1].engine.close)
                if options.device != "cpu":  # half precision is always worth it there
                    break
            if not found:
                continue
            engines = [each.engine for each in found]
            milliseconds = _compare_speed(engines, bundle) if len(found) > 1 else []
            best = found[_choose(milliseconds)]
            opened.pop_all()
            for engine in engines:
                if engine is not best.engine:
                    engine.close()
            names = [engine.precision for engine in engines]
            compared = dict(zip(names, milliseconds, strict=False))
            return Predictor(bundle, best.engine, best.proof, refusals, compared)
    reasons = "\n  ".join(refusals)
    raise EngineError(f"no engine can serve {bundle.manifest.label} here:\n  {reasons}")


def prove(bundle: Bundle, engine: Engine, *, every_way: bool = False) -> Proof:
    """Run the bundle's reference images and compare with the outputs that were stored with them:
    one image a call, and all at once where the engine is fed so, or where every way is asked for.

    Raises `ProofError` beyond the manifest's tolerance, or if an image whose reference is decided
    by more than that tolerance gets another label.
    """
    started = time.perf_counter()
    images, expected = _load_reference(bundle)
    outputs: dict[str, list[Floats]] = {}
    calls = list(np.split(images, len(images)))
    # A replica never runs a batch on streams, and it would be a third of the time to start.
    if every_way or engine.feeding.mode == "batches":
        calls.append(images)
    for chunk in calls:
        for name, values in engine.run(np.ascontiguousarray(chunk)).items():
            outputs.setdefault(name, []).append(values)
    got = {name: np.concatenate(values) for name, values in outputs.items()}
    times = sum(map(len, calls)) // len(images)
    wanted = {name: np.concatenate([values] * times) for name, values in expected.items()}
    proof = _compare(got, wanted, bundle.manifest, len(images), time.perf_counter() - started)
    _check(proof, bundle.manifest.tolerance, engine)
    return proof


def _open_proven(bundle: Bundle, name: str, precision: str, options: EngineOptions) -> _Proven:
    engine = find_engine(name).open_engine(bundle, precision, options)
    try:
        with part("proof"):
            proof = prove(bundle, engine)
    except SightlineError:
        engine.close()
        raise
    logger.info(
        "%s runs on %s %s (%s): largest probability difference %.4f, lowest cosine %.5f",
        bundle.manifest.label,
        name,
        precision,
        engine.device,
        proof.largest_probability_difference,
        proof.lowest_cosine,
    )
    return _Proven(engine, proof)


def _choose(milliseconds: Sequence[float]) -> int:
    """Return which to serve with, of engines from the coarsest precision to the finest, given how
    long each takes: a coarser one has to be `WORTH_IT` times as fast, and by `WORTH_MS`, since a
    network that takes next to nothing differs by chance. None are compared: the first.

    That a CPU computes bfloat16 in hardware does not say that it is faster there: a Xeon with
    AVX512_BF16 but no AMX ran EfficientNet-Lite0 at 177 images/s in bfloat16 and at 299 in float32
    (2 cores, OpenVINO 2026.4).
    """
    best = max(0, len(milliseconds) - 1)
    for i in reversed(range(best)):
        saved = milliseconds[best] - milliseconds[i]
        if saved >= max(WORTH_MS, milliseconds[i] * (WORTH_IT - 1)):
            best = i
    return best


def _compare_speed(engines: Sequence[Engine], bundle: Bundle) -> list[float]:
    """Return how many milliseconds each takes for an image, at best, in turns: the first reference
    image, as often at once as the engine has streams. Infinite for one that fails.
    """
    images, _ = _load_reference(bundle)
    image = np.ascontiguousarray(images[:1])
    shortest = [math.inf] * len(engines)
    most = max(engine.feeding.parallel for engine in engines)
    with part("comparison"), ThreadPoolExecutor(most) as pool:
        until = time.perf_counter() + COMPARISON_SECONDS
        for turn in range(COMPARISON_TURNS):
            if turn >= LEAST_TURNS and time.perf_counter() > until:
                break
            for i, engine in enumerate(engines):
                at_once = [image] * engine.feeding.parallel
                began = time.perf_counter()
                try:
                    list(pool.map(engine.run, at_once))
                except EngineError:
                    continue
                spent = (time.perf_counter() - began) / len(at_once)
                shortest[i] = min(shortest[i], spent * 1e3)
    told = ", ".join(
        f"{engine.precision} {spent:.2f}" for engine, spent in zip(engines, shortest, strict=True)
    )
    logger.info("%s: milliseconds an image: %s", bundle.manifest.label, told)
    return shortest


def _load_reference(bundle: Bundle) -> tuple[Images, dict[str, Floats]]:
    path = bundle.path(REFERENCE)
    try:
        with np.load(path, allow_pickle=False) as stored:
            images: Images = stored["images"]
            expected = {name: stored[name] for name in find_kind(bundle.manifest.kind).outputs}
    except (KeyError, ValueError, OSError) as error:
        raise BundleError(
            f"{bundle.manifest.label}: {REFERENCE} cannot be read ({error}); publish the model "
            "again"
        ) from error
    if not len(images):
        raise BundleError(
            f"{bundle.manifest.label}: {REFERENCE} holds no image to prove an engine with"
        )
    for name, values in expected.items():
        if not np.isfinite(values).all():
            raise BundleError(
                f"{bundle.manifest.label}: {REFERENCE} has values of {name} that are not finite "
                "numbers; publish the model again"
            )
    return images, expected


def _compare(
    got: dict[str, Floats],
    expected: dict[str, Floats],
    manifest: Manifest,
    num_images: int,
    seconds: float,
) -> Proof:
    missing = set(expected) - set(got)
    if missing:
        raise ProofError(f"the engine gives {sorted(got)}, but not {sorted(missing)}")
    for name, values in expected.items():
        if got[name].shape != values.shape:
            raise ProofError(f"{name} has shape {got[name].shape}, expected {values.shape}")
        if not np.isfinite(got[name]).all():
            raise ProofError(f"{name} has values that are not finite numbers")
    cosine = _lowest_cosine(got["embedding"], expected["embedding"])
    difference, labels_equal = 0.0, True
    if "probabilities" in expected:
        reference = expected["probabilities"]
        difference = float(np.max(np.abs(got["probabilities"] - reference)))
        top_two = np.sort(reference, axis=1)[:, -2:]
        decided = (top_two[:, -1] - top_two[:, 0]) > 2 * manifest.tolerance.probability
        same = got["probabilities"].argmax(axis=1) == reference.argmax(axis=1)
        labels_equal = bool(np.all(same | ~decided))
    return Proof(num_images, difference, cosine, labels_equal, seconds)


def _lowest_cosine(got: Floats, expected: Floats) -> float:
    """Return the lowest cosine between two rows; raises `ProofError` if one has not length 1."""
    lengths = np.linalg.norm(got, axis=1)
    worst = float(lengths[np.argmax(np.abs(lengths - 1))])
    if abs(worst - 1) > LENGTH_TOLERANCE:
        raise ProofError(f"an embedding has the length {worst:.4f}, expected 1")
    cosines = np.sum(got * expected, axis=1) / (lengths * np.linalg.norm(expected, axis=1))
    return float(np.min(cosines))


def _check(proof: Proof, tolerance: Tolerance, engine: Engine) -> None:
    thing = f"{engine.name} {engine.precision} does not reproduce the reference outputs"
    if not proof.largest_probability_difference <= tolerance.probability:
        raise ProofError(
            f"{thing}: a probability differs by {proof.largest_probability_difference:.4f}, more "
            "than "
            f"{tolerance.probability}"
        )
    if not proof.lowest_cosine >= tolerance.cosine:
        raise ProofError(
            f"{thing}: an embedding has cosine {proof.lowest_cosine:.5f}, less than "
            f"{tolerance.cosine}"
        )
    if not proof.labels_equal:
        raise ProofError(f"{thing}: another label for an image that is not a close call")


def _chunks(images: Images, engine: Engine) -> Iterator[Images]:
    """Cut a batch into single calls: one image each for streams, full batches otherwise."""
    size = 1 if engine.feeding.mode == "streams" else engine.feeding.max_batch
    for start in range(0, max(len(images), 1), size):
        yield images[start : start + size]


def _as_prediction(parts: Sequence[dict[str, Floats]], kind: Kind) -> Prediction:
    whole = {
        name: parts[0][name] if len(parts) == 1 else np.concatenate([part[name] for part in parts])
        for name in kind.outputs
    }
    return Prediction(whole.get("probabilities"), whole["embedding"])
