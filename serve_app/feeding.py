"""How images reach the engine, off the event loop: by streams or by batches, as the engine asks.

`streams`: one job per image decodes and runs it, on a few threads; both steps release the
interpreter lock, and handing an image from a decoding thread to a running thread would only cost.
`batches`: images are decoded on threads and gathered; while one batch runs, the next one is decoded
and grows. It knows nothing of HTTP, nor of how an image is decoded.

A job whose caller has gone is dropped before it is run: its future is cancelled, by the caller or
here, where the trace of its request says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models.errors import EngineError
from models.predictor import Prediction, Predictor
from models.preprocess import Image
from serve_app.statistics import Statistics
from serve_app.threads import Threads
from serve_app.trace import Trace, current

# Makes an image (H, W, 3) ready, on a thread; whatever it raises is the answer for that image.
Prepare = Callable[[], Image]


class Feeder(Protocol):
    """What turns one image into a prediction of one row."""

    def score(self, prepare: Prepare) -> Awaitable[Prediction]:
        """Make one image ready and run it; raises what making it ready raises."""
        ...

    def run(self, image: Image) -> Awaitable[Prediction]:
        """Run one image (H, W, 3) that is ready."""
        ...

    def close(self) -> None:
        """End the threads; jobs that have not begun are dropped."""
        ...


class StreamFeeder:
    """For engines that take single images on several streams."""

    def __init__(self, predictor: Predictor, num_threads: int, statistics: Statistics) -> None:
        self._predictor = predictor
        self._statistics = statistics
        self._threads = Threads(num_threads, "score")

    def score(self, prepare: Prepare) -> Awaitable[Prediction]:
        """Make one image ready and run it as one job."""
        # In a copy of this context, by which the run finds the trace of its request.
        context, asked = copy_context(), time.perf_counter_ns()
        return self._threads.run(context.run, self._score, prepare, asked)

    def run(self, image: Image) -> Awaitable[Prediction]:
        """Run one image that is ready."""
        context, asked = copy_context(), time.perf_counter_ns()
        return self._threads.run(context.run, self._run_ready, image, asked)

    def close(self) -> None:
        """End the threads."""
        self._threads.close()

    def _score(self, prepare: Prepare, asked: int) -> Prediction:
        _check_client(current.get())
        started = time.perf_counter_ns()
        return self._run(prepare(), asked, started)

    def _run_ready(self, image: Image, asked: int) -> Prediction:
        _check_client(current.get())
        return self._run(image, asked)

    def _run(self, image: Image, asked: int, started: int | None = None) -> Prediction:
        """Run an image that was asked for, and whose decoding began, at those nanoseconds."""
        ready = time.perf_counter_ns()
        started = ready if started is None else started
        prediction = self._predictor.predict(image[None]).checked()
        done = time.perf_counter_ns()
        self._statistics.add_run(1, started - asked, ready - started, done - ready)
        return prediction


@dataclass(frozen=True)
class _Waiting:
    image: Image
    answer: asyncio.Future[Prediction]
    arrived: int  # nanoseconds, as all times here
    queue_ns: int  # spent waiting for a thread to decode on
    input_ns: int  # spent decoding
    trace: Trace | None  # of its request


class BatchFeeder:
    """For engines that take many images at once.

    A batch closes when it is full or when its first image has waited `wait_seconds`; images that
    come while the engine is busy join the next one, so under load batches fill without any waiting.
    """

    def __init__(
        self,
        predictor: Predictor,
        num_threads: int,
        wait_seconds: float,
        statistics: Statistics,
    ) -> None:
        self._predictor = predictor
        self._wait_ns = int(wait_seconds * 1e9)
        self._statistics = statistics
        self._max_batch = predictor.engine.feeding.max_batch
        self._decoding = Threads(num_threads, "decode")
        self._running = Threads(1, "run")
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._gathering: asyncio.Task[None] | None = None

    async def score(self, prepare: Prepare) -> Prediction:
        """Make one image ready and let it join a batch."""
        asked = time.perf_counter_ns()
        image, started, ready = await self._decoding.run(_timed, prepare, current.get())
        return await self._join(image, started - asked, ready - started)

    async def run(self, image: Image) -> Prediction:
        """Let one image that is ready join a batch."""
        return await self._join(image, 0, 0)

    async def _join(self, image: Image, queue_ns: int, input_ns: int) -> Prediction:
        loop = asyncio.get_running_loop()
        if self._gathering is None or self._gathering.done():
            self._gathering = loop.create_task(self._gather_forever())
        now = time.perf_counter_ns()
        future = loop.create_future()
        waiting = _Waiting(image, future, now, queue_ns, input_ns, current.get())
        self._queue.put_nowait(waiting)
        return await waiting.answer

    def close(self) -> None:
        """End the threads and the gathering."""
        if self._gathering is not None and not self._gathering.get_loop().is_closed():
            self._gathering.cancel()
        self._decoding.close()
        self._running.close()

    async def _gather_forever(self) -> None:
        while True:
            batch = [entry for entry in await self._next_batch() if _is_wanted(entry)]
            if not batch:
                continue
            try:
                whole = await self._running.run(self._run, batch)
            except asyncio.CancelledError:
                raise  # closed
            # One failed batch must not end the loop that all later requests need; some
            # extensions raise what is no `Exception`.
            except BaseException as error:
                for entry in batch:
                    if not entry.answer.done():
                        entry.answer.set_exception(error)
                continue
            for position, entry in enumerate(batch):
                if entry.answer.done():
                    continue
                try:
                    entry.answer.set_result(_row(whole, position).checked())
                except EngineError as error:  # of this image only
                    entry.answer.set_exception(error)

    async def _next_batch(self) -> Sequence[_Waiting]:
        batch = [await self._queue.get()]
        closes = batch[0].arrived + self._wait_ns
        while len(batch) < self._max_batch:
            remaining = (closes - time.perf_counter_ns()) / 1e9
            if not self._queue.empty():
                batch.append(self._queue.get_nowait())
            elif remaining > 0:
                try:
                    batch.append(await asyncio.wait_for(self._queue.get(), remaining))
                except TimeoutError:
                    break
            else:
                break
        return batch

    def _run(self, batch: Sequence[_Waiting]) -> Prediction:
        started = time.perf_counter_ns()
        prediction = self._predictor.predict(np.stack([entry.image for entry in batch]))
        spent = time.perf_counter_ns() - started
        queue_ns = sum(entry.queue_ns + started - entry.arrived for entry in batch)
        input_ns = sum(entry.input_ns for entry in batch)
        # As Triton counts: every image of a batch took as long as the batch.
        self._statistics.add_run(len(batch), queue_ns, input_ns, spent * len(batch))
        for entry in batch:
            waited = entry.queue_ns + started - entry.arrived
            self._statistics.note(entry.trace, 1, waited, entry.input_ns, spent)
        return prediction


def open_feeder(
    predictor: Predictor,
    *,
    num_threads: int,
    wait_seconds: float,
    statistics: Statistics,
) -> Feeder:
    """Return the feeder that the engine asks for."""
    if predictor.engine.feeding.mode == "streams":
        return StreamFeeder(predictor, num_threads, statistics)
    return BatchFeeder(predictor, num_threads, wait_seconds, statistics)


def _check_client(trace: Trace | None) -> None:
    """Raise `CancelledError` where the client of a request has left."""
    if trace is not None and trace.is_abandoned:
        raise asyncio.CancelledError


def _is_wanted(entry: _Waiting) -> bool:
    if entry.trace is not None and entry.trace.is_abandoned:
        entry.answer.cancel()
    return not entry.answer.done()


def _timed(prepare: Prepare, trace: Trace | None) -> tuple[Image, int, int]:
    _check_client(trace)
    started = time.perf_counter_ns()
    image = prepare()
    return image, started, time.perf_counter_ns()


def _row(prediction: Prediction, position: int) -> Prediction:
    rows = slice(position, position + 1)
    probabilities = prediction.probabilities
    return Prediction(
        None if probabilities is None else probabilities[rows], prediction.embedding[rows]
    )
