"""One worker of a run without a server: reads, decodes and runs images, and makes their rows.

A few lists of items may be under way at a time, each on a thread of its caller; while the last
images of one are run, those of the next are read and decoded. It knows nothing of Ray.

Images are fed as the engine asks (`Feeding`). Single images for streams are decoded by the thread
that runs them, as in serving: handing them over would only cost. A batch always has the engine's
full size, filled up with black: so the numbers of an image do not depend on how many others there
were.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.environment import usable_cores
from jobs.data.places import group_reads, read_group
from jobs.score.ahead import in_order
from jobs.score.answer import Answer
from jobs.score.columns import Columns
from jobs.score.items import Item
from jobs.score.reading import Failure, Loaded, load
from models.bundle import Bundle, open_bundle
from models.decoders import DEFAULT_LIMITS, ImageLimits
from models.engines.base import EngineOptions
from models.errors import EngineError, ImageError, SightlineError
from models.label_map import Reading
from models.predictor import Prediction, Predictor, open_predictor
from models.preprocess import Box, Image, load_libraries, prepare

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]


Choice = tuple[str, str]  # of an engine and its precision


@dataclass(frozen=True)
class Job:
    """What all workers of a run have in common."""

    bundle: str
    engine: EngineOptions
    columns: Columns
    reading: Reading
    label_revision: int | None  # as the rows say it
    num_readers: int
    limits: ImageLimits = DEFAULT_LIMITS


@dataclass(frozen=True)
class Opened:
    """What a worker says of itself when it is ready."""

    engine: str
    precision: str
    device: str
    images_per_batch: int  # 1 where the engine takes single images

    @property
    def choice(self) -> Choice:
        """What others of the same run are to choose, too."""
        return self.engine, self.precision


@dataclass(frozen=True, slots=True)
class Output:
    """What the network says of one image."""

    probabilities: Floats | None  # (C,)
    embedding: Floats  # (D,)


class Feeder(Protocol):
    """How images reach the engine."""

    def begin(self, data: bytes, box: Box | None) -> Future[Any]:
        """Begin with one image, on a thread."""
        ...

    def finish(self, begun: Sequence[Any]) -> list[Output | Failure]:
        """Return what came of the images, given what `begin` came to."""
        ...

    def close(self) -> None:
        """End the threads."""
        ...


class StreamFeeder:
    """For engines that take single images on several streams."""

    def __init__(self, predictor: Predictor, limits: ImageLimits) -> None:
        self._predictor = predictor
        self._limits = limits
        # One more than the streams: it decodes while the others wait for their streams.
        threads = predictor.engine.feeding.parallel + 1
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="score")

    def begin(self, data: bytes, box: Box | None) -> Future[Any]:
        """Decode and run it."""
        return self._threads.submit(self._run, data, box)

    def finish(self, begun: Sequence[Any]) -> list[Output | Failure]:
        """Return them: all is done."""
        return list(begun)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    def _run(self, data: bytes, box: Box | None) -> Output | Failure:
        try:
            image = prepare(data, self._predictor.manifest.preprocess, self._limits, box)
        except ImageError as error:
            return Failure(str(error), error.code)
        return _outputs(self._predictor.predict(image[None]))[0]


class BatchFeeder:
    """For engines that take many images at once."""

    def __init__(self, predictor: Predictor, limits: ImageLimits, num_threads: int) -> None:
        self._predictor = predictor
        self._limits = limits
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")

    def begin(self, data: bytes, box: Box | None) -> Future[Any]:
        """Decode it."""
        return self._threads.submit(self._decode, data, box)

    def finish(self, begun: Sequence[Any]) -> list[Output | Failure]:
        """Run all that could be decoded, in whole batches."""
        size = self._predictor.engine.feeding.max_batch
        spec = self._predictor.manifest.preprocess
        images = np.zeros((-(-len(begun) // size) * size, spec.height, spec.width, 3), np.uint8)
        for position, image in enumerate(begun):
            if not isinstance(image, Failure):
                images[position] = image
        outputs = _outputs(self._predictor.predict(images))
        return [
            image if isinstance(image, Failure) else outputs[position]
            for position, image in enumerate(begun)
        ]

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    def _decode(self, data: bytes, box: Box | None) -> Image | Failure:
        try:
            return prepare(data, self._predictor.manifest.preprocess, self._limits, box)
        except ImageError as error:
            return Failure(str(error), error.code)


class Worker:
    """A proven model, and the threads that feed it."""

    def __init__(self, job: Job, choice: Choice | None = None) -> None:
        """Load the model as a replica does, where it can with the `choice` of another worker of the
        run: which precision is faster, each would find out for itself. Raises `EngineError` where
        no engine can prove the model.
        """
        load_libraries()
        self._job = job
        # Ray may be told of more CPUs than a machine has.
        num_threads = min(job.engine.num_threads, usable_cores())
        options = job.engine.model_copy(update={"threads": num_threads})
        self._predictor = _open(choice, open_bundle(job.bundle), options)
        engine = self._predictor.engine
        is_batched = engine.feeding.mode == "batches"
        self._feeder: Feeder = (
            BatchFeeder(self._predictor, job.limits, num_threads)
            if is_batched
            else StreamFeeder(self._predictor, job.limits)
        )
        self._readers = ThreadPoolExecutor(job.num_readers, thread_name_prefix="read")
        # How much is read and not run yet; neighbours in a container in a bucket count as one.
        self._window = 2 * (job.num_readers + num_threads)
        self.opened = Opened(
            engine.name,
            engine.precision,
            engine.device,
            engine.feeding.max_batch if is_batched else 1,
        )
        self._facts: dict[str, Any] = {
            "model": self._predictor.manifest.name,
            "version": self._predictor.manifest.version,
            "engine": engine.name,
            "label_revision": job.label_revision,
        }

    def score(self, items: Sequence[Item]) -> pa.Table:
        """Return the rows of a part, one for each item. Raises `EngineError`."""
        groups = group_reads([item.place for item in items])
        read = in_order(
            self._readers,
            lambda group: self._read([items[position] for position in group]),
            groups,
            window=self._window,
        )
        answers: dict[int, Answer] = {}
        begun: dict[int, Any] = {}
        for group, results in zip(groups, read, strict=True):
            for position, found in zip(group, results, strict=True):
                if isinstance(found, Failure):  # not read, so nobody has looked at it
                    answers[position] = Answer(items[position], failure=found)
                else:
                    begun[position] = found.result()
        if begun:
            outputs = self._feeder.finish(list(begun.values()))
            for position, output in zip(begun, outputs, strict=True):
                answers[position] = self._answer(items[position], output)
        return self._job.columns.to_table([answers[n] for n in range(len(items))])

    def close(self) -> None:
        """End the threads and free the engine."""
        self._readers.shutdown()
        self._feeder.close()
        self._predictor.close()

    def _read(self, items: Sequence[Item]) -> list[Failure | Future[Any]]:
        """Read images that lie together, and begin with them."""
        return [
            loaded.failure or self._feeder.begin(loaded.data, loaded.item.box)
            for loaded in self._load(items)
        ]

    def _load(self, items: Sequence[Item]) -> list[Loaded]:
        most = self._job.limits.max_bytes
        if len(items) > 1 and all(item.size <= most and not item.problem for item in items):
            try:
                found = read_group([item.place for item in items])
            except SightlineError:  # one of them may be at fault: the others are not
                pass
            else:
                return [Loaded(item, data) for item, data in zip(items, found, strict=True)]
        return [load(item, most) for item in items]

    def _answer(self, item: Item, output: Output | Failure) -> Answer:
        if isinstance(output, Failure):
            return Answer(item, failure=output, **self._facts)
        columns = self._job.columns
        embedding: Any = output.embedding if columns.embedding_width else None
        if not columns.has_label or output.probabilities is None:
            return Answer(item, embedding=embedding, **self._facts)
        answer = self._job.reading.read(
            output.probabilities, top_k=max(1, columns.top_k), scores=columns.scores
        )
        scores = tuple((score.label, score.probability) for score in answer.scores)
        return Answer(
            item, answer.label, answer.confidence, scores, embedding=embedding, **self._facts
        )


def _open(choice: Choice | None, bundle: Bundle, options: EngineOptions) -> Predictor:
    if choice is not None:
        engine, precision = choice
        same = options.model_copy(update={"engines": (engine,), "precision": precision})
        try:
            return open_predictor(bundle, same)
        except EngineError as error:
            logger.warning("this worker cannot do as the first one does: %s", error)
    return open_predictor(bundle, options)


def _outputs(prediction: Prediction) -> list[Output | Failure]:
    """Return what was said of each image, and of which nothing was that is a number."""
    probabilities, embedding = prediction.probabilities, prediction.embedding
    found: list[Output | Failure] = []
    for position in range(len(embedding)):
        rows = slice(position, position + 1)
        one = Prediction(None if probabilities is None else probabilities[rows], embedding[rows])
        try:
            one.checked()
        except EngineError as error:
            found.append(Failure(str(error), error.code))
            continue
        scores = None if probabilities is None else probabilities[position]
        found.append(Output(scores, embedding[position]))
    return found
