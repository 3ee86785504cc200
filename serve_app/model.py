"""One model as it is served: the proven predictor, the way images reach it, and its limits.

This is all that the HTTP calls know of a model, so they can be tested without Serve.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial

from models.bundle import open_bundle
from models.errors import ConfigError, EngineError, SightlineError
from models.kinds import find_kind
from models.label_log import open_log
from models.label_map import Reading, first_reading
from models.labels import Answer
from models.manifest import Manifest
from models.predictor import Prediction, Predictor, open_predictor, prove
from models.preprocess import Image, load_libraries
from models.stopwatch import part
from serve_app.admission import Gate
from serve_app.config import ServeOptions
from serve_app.errors import RequestError
from serve_app.feeding import Prepare, open_feeder
from serve_app.label_keeper import FixedLabels, LabelKeeper, Labels
from serve_app.meters import MAX_LABELS, Meters
from serve_app.statistics import Statistics
from serve_app.trace import current
from serve_app.watch import Watch

logger = logging.getLogger(__name__)

Scored = Prediction | SightlineError
Encoded = bytes | memoryview  # an image file


class ServedModel:
    """A predictor that answers many requests at once."""

    def __init__(
        self, predictor: Predictor, options: ServeOptions, labels: Labels | None = None
    ) -> None:
        """`labels` are the model's own classes if None."""
        self.labels = labels or FixedLabels(first_reading(predictor.manifest.classes))
        self.predictor = predictor
        self.manifest = predictor.manifest
        self.kind = predictor.kind
        self.limits = options.limits
        self.has_docs = options.docs
        has_few = len(predictor.manifest.classes) <= MAX_LABELS
        self.watch = Watch(Meters(has_labels=has_few) if options.metrics else None)
        self.statistics = Statistics()
        self.gate = Gate(options, predictor.engine.feeding, self.statistics)
        # What every answer says of who gave it.
        self.facts: dict[str, object] = {
            "model": self.manifest.name,
            "version": self.manifest.version,
            "engine": predictor.engine.name,
            "precision": predictor.engine.precision,
        }
        self._feeder = open_feeder(
            predictor,
            num_threads=options.decode_threads or _num_decode_threads(predictor, options),
            wait_seconds=options.batch_wait_ms / 1000,
            statistics=self.statistics,
        )
        # Seconds that the parts of starting took, where somebody measured; for `/config`.
        self.start: Mapping[str, float] = {}
        self._num_failures = 0
        self._proving: asyncio.Task[None] | None = None
        self._is_closed = False

    async def score(self, data: Encoded) -> Prediction:
        """Score one encoded image. Raises `ImageError` for what cannot be decoded."""
        try:
            return await self._feeder.score(partial(self._decode, data))
        except EngineError:
            self._num_failures += 1
            raise

    async def score_each(self, images: Sequence[Encoded | SightlineError]) -> list[Scored]:
        """Score several images; one that cannot be read has its error in its place.

        An error that is not about one image is raised.
        """
        asked = [
            self._feeder.score(partial(self._decode, image))
            for image in images
            if not isinstance(image, SightlineError)
        ]
        scored = iter(await self._all(asked))
        return [image if isinstance(image, SightlineError) else next(scored) for image in images]

    async def run_each(self, images: Sequence[Image]) -> list[Scored]:
        """Run images (H, W, 3) that are ready."""
        return await self._all([self._feeder.run(image) for image in images])

    async def prepare_each(self, images: Sequence[Prepare]) -> list[Scored]:
        """Run images that are made ready on the threads that run them; one for which that raises a
        `SightlineError` has it in its place.
        """
        return await self._all([self._feeder.score(image) for image in images])

    async def check(self) -> None:
        """Raise if the model cannot be trusted to answer.

        An engine that failed since the last check, or has finished nothing for so long that
        requests are given up, has to reproduce the bundle's reference outputs again, so that a
        broken device takes the replica out of service instead of failing request after request. One
        that hangs does not answer here either, until Serve's patience ends.
        """
        if self._is_closed:
            raise RequestError(503, "closed", f"model {self.manifest.label} is closed")
        if self._num_failures or self.gate.num_too_late:
            if self._proving is None:
                self._proving = asyncio.create_task(self._prove_again())
            # Whoever asks meanwhile waits for the same proof, and takes it from nobody by leaving.
            await asyncio.shield(self._proving)

    async def _prove_again(self) -> None:
        failures, too_late = self._num_failures, self.gate.num_too_late
        try:
            await asyncio.to_thread(prove, self.predictor.bundle, self.predictor.engine)
        except SightlineError as error:
            logger.error("%s does not reproduce its reference: %s", self.manifest.label, error)
            raise RequestError(
                503, "engine", f"the engine of {self.manifest.label} failed; the log says why"
            ) from error
        finally:
            self._proving = None
        self._num_failures -= failures
        self.gate.num_too_late -= too_late

    def close(self) -> None:
        """End the threads and free the engine."""
        self._is_closed = True
        self.watch.close()
        self.labels.close()
        self._feeder.close()
        self.predictor.close()

    def note_answer(self, answer: Answer, reading: Reading) -> None:
        """Count the label that an image was answered with."""
        meters = self.watch.meters
        if meters is not None:
            is_unknown = self.kind.has_label_map and answer.label == reading.label_map.unknown
            meters.add_prediction(answer.label, answer.confidence, is_unknown=is_unknown)

    def note_image_error(self, error: SightlineError) -> None:
        """Count an image that has an error beside others that were scored."""
        if self.watch.meters is not None:
            self.watch.meters.add_image_error(error.code)

    def note_reading(self, reading: Reading) -> None:
        """Let the access log know which labels a request is answered with."""
        trace = current.get()
        if trace is not None and self.kind.has_label_map:
            trace.revision = reading.revision

    def _decode(self, data: Encoded) -> Image:
        return self.predictor.prepare(data, self.limits.image)

    async def _all(self, asked: Sequence[Awaitable[Prediction]]) -> list[Scored]:
        """Wait for all of them. An error that is not about one image is raised."""
        found: list[Scored] = []
        waiting = [asyncio.ensure_future(each) for each in asked]
        self.gate.count_images(waiting)
        for each in await asyncio.gather(*waiting, return_exceptions=True):
            if isinstance(each, EngineError):
                self._num_failures += 1
            if isinstance(each, EngineError) or not isinstance(each, Scored):
                raise each
            found.append(each)
        return found


def _num_decode_threads(predictor: Predictor, options: ServeOptions) -> int:
    """Return one thread for each image that the engine runs at a time, and one that decodes the
    next.
    """
    feeding = predictor.engine.feeding
    is_streams = feeding.mode == "streams"
    return feeding.parallel + 1 if is_streams else options.engine_options.num_threads


def open_served(options: ServeOptions) -> ServedModel:
    """Open the bundle, prove an engine with it, and return the model ready to answer."""
    with part("imports"):
        load_libraries()
    with part("manifest"):
        bundle = open_bundle(options.bundle)
    with part("labels"):
        labels = _open_labels(bundle.manifest, options)
    return ServedModel(open_predictor(bundle, options.engine_options), options, labels)


def _open_labels(manifest: Manifest, options: ServeOptions) -> Labels | None:
    if find_kind(manifest.kind).has_label_map != (options.label_store is not None):
        raise ConfigError(
            f"model {manifest.label} is of kind {manifest.kind!r}, which has "
            + ("no label map: remove" if options.label_store else "a label map: set")
            + " `label_store` in the args of its application"
        )
    if options.label_store is None:
        return None
    log = open_log(options.label_store, manifest.name, manifest.classes)
    return LabelKeeper(log, options.label_poll_seconds)
