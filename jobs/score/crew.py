"""Workers on Ray that score chunks of items, and what happens when one of them dies.

Chunks go out in the order of the listing and come back in it, at most a few for each worker at a
time, so memory does not grow with the number of images, nor the results depend on the number of
workers. A chunk on whose worker the process died is given to another one, alone; one that kills
that too is cut in halves, so that an image on which a decoder crashes costs one row and not the
run.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import ray
from ray.exceptions import RayError, RayTaskError

from jobs.causes import find_cause
from jobs.score.answer import Answer
from jobs.score.items import Item
from jobs.score.reading import Failure, Loaded, Streak
from jobs.score.worker import Choice, Job, Opened, Worker
from models.errors import ConfigError, EngineError

logger = logging.getLogger(__name__)

IN_FLIGHT = 2  # chunks at a worker: while one is run to its end, the next is read and decoded
AHEAD = 3  # times as many may wait for a slow one before them
IMAGES_PER_CHUNK = 32  # of single images
BATCHES_PER_CHUNK = 2
DEATHS_TOGETHER, DEATHS_ALONE = 2, 3  # of workers with one chunk, or one image, before it is blamed
MAX_DEATHS = 20  # with nothing finished in between
THREADS_PER_WORKER = 4  # more in one process would wait for Python's lock
WAIT_SECONDS = 2.0
SECONDS_TO_NOTICE = 30.0  # without any worker


@dataclass(frozen=True)
class Size:
    """How many workers there are, and what each of them takes."""

    num_workers: int
    num_threads: int  # and logical CPUs of Ray
    num_gpus: int = 0

    def __str__(self) -> str:
        """For people."""
        each = "1 thread" if self.num_threads == 1 else f"{self.num_threads} threads"
        each += " and a GPU" if self.num_gpus else ""
        workers = "1 worker" if self.num_workers == 1 else f"{self.num_workers} workers"
        return f"{workers} of {each}"


@dataclass(frozen=True)
class Node:
    """What Ray says that a machine has."""

    cpus: int
    gpus: int = 0


def list_nodes() -> list[Node]:
    """Return the machines of the Ray that runs."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(int(each.get("CPU", 0)), int(each.get("GPU", 0))) for each in alive]


def choose_size(
    nodes: Sequence[Node],
    *,
    num_cpus: float | None = None,
    threads: int | None = None,
    workers: int | None = None,
    has_gpus: bool = False,
) -> Size:
    """Return how many workers there is room for: one for each GPU, else as many as have their
    threads' CPUs to themselves; `num_cpus` is how many CPUs are real (None: all). Raises
    `ConfigError` where a worker would take what no machine has, for which Ray waits for ever.
    """
    largest = max((node.cpus for node in nodes), default=0)
    if has_gpus:
        with_gpus = [node for node in nodes if node.gpus]
        if not with_gpus:
            raise ConfigError(
                f"--device cuda: no machine of this Ray has a GPU, the largest has {largest} CPUs; "
                "leave it out to score on CPUs"
            )
        num_threads = threads or max(1, min(node.cpus // node.gpus for node in with_gpus))
        largest = max(node.cpus for node in with_gpus)
        if num_threads > largest:
            raise ConfigError(
                f"--device cuda, --threads {num_threads}: a worker takes a GPU and so many CPUs of "
                f"one machine, and the largest with a GPU has {largest} CPUs of this Ray"
            )
        return Size(workers or sum(node.gpus for node in with_gpus), num_threads, 1)
    if threads is not None and threads > largest:
        raise ConfigError(
            f"--threads {threads}: a worker takes so many CPUs of one machine, and the largest of "
            f"this Ray has {largest}; give no more"
        )
    cpus = [node.cpus for node in nodes if node.cpus] or [1]
    if num_cpus is not None:  # of this machine, which is the only one
        cpus = [max(1, int(num_cpus))]
    num_threads = threads or min(THREADS_PER_WORKER, *cpus)
    return Size(workers or max(1, sum(count // num_threads for count in cpus)), num_threads)


@dataclass(eq=False)
class _Chunk:
    items: Sequence[Item]
    deaths: int = 0
    is_sent: bool = False
    table: pa.Table | None = None


@dataclass(eq=False)
class _Hand:
    """One worker: its actor, and what it was asked for."""

    actor: Any
    opening: Any  # reference to what it says when it is ready; None from then on
    chunks: dict[Any, _Chunk] = field(default_factory=dict)  # by the reference to its rows
    is_told: bool = False  # what the others chose

    def has_room(self, chunk: _Chunk | None) -> bool:
        """Say whether it may be given a chunk now; one that has seen a death comes alone."""
        if self.opening is not None or any(each.deaths for each in self.chunks.values()):
            return False
        return not self.chunks if chunk and chunk.deaths else len(self.chunks) < IN_FLIGHT


class _RayWorker:
    """What Ray runs: a worker that is opened by a call, so that what it raises arrives as it is."""

    _worker: Worker | None = None

    def open(self, job: Job, choice: Choice | None) -> Opened:
        if self._worker is not None:
            self._worker.close()
        self._worker = Worker(job, choice)
        return self._worker.opened

    def score(self, items: Sequence[Item]) -> pa.Table:
        assert self._worker is not None
        return self._worker.score(items)


class Crew:
    """All workers of a run, from `open` until it is left; then they are gone at once."""

    def __init__(self, job: Job, size: Size, choice: Choice | None = None) -> None:
        """`choice` is what the workers of an earlier run chose, which this one goes on with."""
        self.num_retries = 0  # workers that died
        self._job = job
        self._size = size
        self._job_ref: Any = None
        self._hands: list[_Hand] = []
        self._opened: Opened | None = None
        self._choice = choice
        self._num_deaths = 0  # since a chunk was finished
        self._streak = Streak()

    @property
    def choice(self) -> Choice | None:
        """What the workers chose, once one is ready."""
        return self._choice

    @property
    def told(self) -> str:
        """Who scores, for people."""
        opened = self._opened
        engine = f"{opened.engine} {opened.precision} on {opened.device}" if opened else "no engine"
        return f"{self._size}, {engine}"

    def __enter__(self) -> Self:
        self._job_ref = ray.put(self._job)
        for _ in range(self._size.num_workers):
            self._hire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for hand in self._hands:
            ray.kill(hand.actor)

    def open(self) -> Opened:
        """Wait until one worker is ready. Raises what keeps it from that, as `EngineError`."""
        notice = time.monotonic() + SECONDS_TO_NOTICE
        while self._opened is None:
            self._collect([])
            if time.monotonic() > notice:
                notice = float("inf")
                logger.warning("waiting for Ray to have room for a worker: %s asked", self._size)
        return self._opened

    def rows(self, items: Iterable[Item]) -> Iterator[pa.Table]:
        """Yield the rows of all items, chunk by chunk, in their order."""
        num_images = self._images_per_chunk()
        left = iter(items)
        waiting: list[_Chunk] = []
        is_end = False
        while True:
            self._send_out(waiting)
            while not is_end and self._wants_more(waiting):
                taken = list(itertools.islice(left, num_images))
                is_end = len(taken) < num_images
                if taken:
                    waiting.append(_Chunk(taken))
                    self._send_out(waiting)
            while waiting and waiting[0].table is not None:
                yield self._watched(waiting.pop(0))
            if is_end and not waiting:
                return
            self._collect(waiting)

    def _images_per_chunk(self) -> int:
        per_batch = self.open().images_per_batch
        return IMAGES_PER_CHUNK if per_batch == 1 else BATCHES_PER_CHUNK * per_batch

    def _hire(self) -> None:
        options = {"num_cpus": self._size.num_threads, "num_gpus": self._size.num_gpus}
        made = ray.remote(_RayWorker).options(**options, max_concurrency=IN_FLIGHT + 1).remote()
        self._hands.append(_Hand(made, made.open.remote(self._job_ref, self._choice)))

    def _wants_more(self, waiting: Sequence[_Chunk]) -> bool:
        most = AHEAD * IN_FLIGHT * self._size.num_workers
        is_idle = any(hand.has_room(None) for hand in self._hands)
        return is_idle and len(waiting) < most and all(chunk.is_sent for chunk in waiting)

    def _send_out(self, waiting: Sequence[_Chunk]) -> None:
        for chunk in waiting:
            if chunk.is_sent:
                continue
            free = [hand for hand in self._hands if hand.has_room(chunk)]
            if not free:
                return
            hand = min(free, key=lambda each: len(each.chunks))
            hand.chunks[hand.actor.score.remote(chunk.items)] = chunk
            chunk.is_sent = True

    def _collect(self, waiting: list[_Chunk]) -> None:
        """Wait a while for something to happen, and take it."""
        hands: dict[Any, _Hand] = {}
        for hand in self._hands:
            asked = [hand.opening] if hand.opening is not None else list(hand.chunks)
            hands |= dict.fromkeys(asked, hand)
        ready, _ = ray.wait(list(hands), num_returns=1, timeout=WAIT_SECONDS)
        for ref in ready:
            try:
                self._take(hands[ref], ref, ray.get(ref))
            except RayTaskError as error:
                cause = find_cause(error)
                if cause is None:
                    raise
                raise cause from None
            except RayError as error:  # the worker is dead, or its machine
                self._mourn(hands[ref], error, waiting)

    def _take(self, hand: _Hand, ref: Any, value: Any) -> None:
        if ref == hand.opening:
            hand.opening = None
            self._opened = self._opened or value
            self._choice = self._choice or value.choice
            if value.choice != self._choice and not hand.is_told:
                hand.is_told = True  # once: it may not be able to
                hand.opening = hand.actor.open.remote(self._job_ref, self._choice)
            return
        hand.chunks.pop(ref).table = value
        self._num_deaths = 0

    def _mourn(self, hand: _Hand, error: RayError, waiting: list[_Chunk]) -> None:
        """Replace a worker that died, and have done again what it was doing."""
        self._num_deaths += 1
        self.num_retries += 1
        why = str(error).strip().splitlines()[0]
        if self._num_deaths >= MAX_DEATHS:
            raise EngineError(
                f"workers have died {self._num_deaths} times with nothing finished in between, the "
                f"last one because: {why}"
            ) from error
        logger.warning("a worker died, another one takes over: %s", why)
        ray.kill(hand.actor)
        self._hands.remove(hand)
        for chunk in hand.chunks.values():
            chunk.deaths += 1
            chunk.is_sent = False
            if chunk.deaths >= (DEATHS_TOGETHER if len(chunk.items) > 1 else DEATHS_ALONE):
                self._blame(chunk, waiting)
        self._hire()

    def _blame(self, chunk: _Chunk, waiting: list[_Chunk]) -> None:
        """Cut a chunk that workers die of in halves; one image gets its row."""
        if len(chunk.items) == 1:
            told = f"the worker that had it died, {chunk.deaths} times"
            answer = Answer(chunk.items[0], failure=Failure(told, "worker_failed"))
            chunk.table, chunk.is_sent = self._job.columns.to_table([answer]), True
            return
        place, middle = waiting.index(chunk), len(chunk.items) // 2
        halves = (chunk.items[:middle], chunk.items[middle:])
        waiting[place : place + 1] = [_Chunk(half, deaths=1) for half in halves]

    def _watched(self, chunk: _Chunk) -> pa.Table:
        """Return the rows, unless the store with the images has failed too often in a row."""
        table = chunk.table
        assert table is not None
        if table["code"].null_count == len(table):
            self._streak.follow(Loaded(chunk.items[-1]))
            return table
        rows = table.select(["code", "error"]).to_pylist()
        for item, row in zip(chunk.items, rows, strict=True):
            failure = Failure(row["error"], row["code"]) if row["code"] else None
            self._streak.follow(Loaded(item, failure=failure))
        return table
