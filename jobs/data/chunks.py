"""Runs a function over the chunk numbers 0..n-1 in Ray tasks, results in order, memory bounded.

A chunk is a few dozen images; the function gets its number and returns named arrays. What the
images are, the callers know: `index` and `streams`.

A fact one would wonder at: this is no Ray Data. A chunk cost it 21 ms of CPU time beside the
function's own (11 in this process, 7 in the worker's, 3 in Ray's), of a task as here it is 6: with
photos of 400 x 533 that is a tenth of everything. What Ray Data would do beyond it, blocks and
their formats, nothing here needs.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import ray

from jobs.causes import find_cause
from jobs.data.slots import Address, InSlot, Slot, SlotPool, pack, pool_for, task_memory

Columns = Mapping[str, npt.NDArray[Any]]
ChunkFunction = Callable[[int], Columns]

STORE_SHARE = 0.3
SECONDS_TO_STOP = 0.2  # within which a closed run notices


@dataclass(frozen=True)
class Pace:
    """How far a run may reach ahead.

    `cpu_limit` is how many chunks are worked on at once (None: as many as the cluster has CPUs);
    `ahead` how many finished chunks wait for the consumer; `chunk_bytes` about how large one is:
    both together take at most `STORE_SHARE` of a node's object store, or two chunks. `task_cpus` is
    what a task asks Ray for; with 0 it never waits for a CPU. `slot_bytes` is what `slots.room_for`
    gives of shared memory in each task: no copy is made of it on the way.
    """

    chunk_bytes: int
    ahead: int = 4
    cpu_limit: float | None = None
    task_cpus: float = 1.0
    slot_bytes: int = 0


def run_chunks(function: ChunkFunction, num_chunks: int, pace: Pace) -> Iterator[Columns]:
    """Yield `function(0)`, `function(1)`, ..., computed by Ray tasks ahead. Arrays are read-only
    but for those in a slot, which are the caller's own.

    An error of ours raised in a task is raised here as itself. Closing the iterator stops the run.
    """
    if num_chunks == 0:
        return
    parallel = count_cpus(pace.cpu_limit)
    # Beside what waits, every running task holds one chunk.
    room = min(parallel + pace.ahead, max(2, _store_bytes() // pace.chunk_bytes))
    pool = pool_for(pace.slot_bytes, keep=room) if pace.slot_bytes else None
    run = _Run(function, num_chunks, min(parallel, room), room, pace.task_cpus, pool)
    run.start()
    try:
        for _ in range(num_chunks):
            yield run.next()
    except Exception as error:  # Ray wraps what a task raises
        cause = find_cause(error)
        if cause is None:
            raise
        raise cause from None
    finally:
        run.stop()


def count_cpus(cpu_limit: float | None) -> int:
    """Return how many chunks are worked on at once: the limit, else the CPUs of the cluster."""
    cpus = cpu_limit if cpu_limit is not None else ray.cluster_resources().get("CPU", 1)
    return max(1, int(cpus))


def _store_bytes() -> int:
    """Return what chunks may take of the object store of one node, where they are fetched to."""
    nodes = max(1, sum(bool(node["Alive"]) for node in ray.nodes()))
    return int(STORE_SHARE * ray.cluster_resources().get("object_store_memory", 0) / nodes)


class _Run:
    """Starts a task as soon as another one is done and there is room, whatever the consumer does
    meanwhile.
    """

    def __init__(
        self,
        function: ChunkFunction,
        num_chunks: int,
        parallel: int,
        room: int,
        task_cpus: float,
        pool: SlotPool | None,
    ) -> None:
        self._function = function
        self._task_cpus = task_cpus
        self._pool = pool
        self._num_chunks = num_chunks
        self._parallel = parallel
        self._room = threading.Semaphore(room)
        self._results: queue.SimpleQueue[_Started | Exception] = queue.SimpleQueue()
        self._is_stopped = threading.Event()
        self._starter = threading.Thread(target=self._start_all, name="chunks", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._starter.start()

    def next(self) -> Columns:
        """Wait for the next chunk in order."""
        found = self._results.get()
        if isinstance(found, Exception):
            raise found
        columns = ray.get(found.reference)
        self._room.release()
        return {name: self._unpack(column, found.slot) for name, column in columns.items()}

    def _unpack(self, column: Any, slot: Slot | None) -> Any:
        if not isinstance(column, InSlot):
            return column
        assert self._pool is not None
        assert slot is not None
        return self._pool.hand_out(slot, column.shape)

    def stop(self) -> None:
        """Start no task any more. Those that run come to their end: with `ray.cancel` here a run
        once waited for ever, one of some fifty; whether that was why is not known.
        """
        self._is_stopped.set()
        self._starter.join()

    def _start_all(self) -> None:
        try:
            self._start_tasks()
        except Exception as error:  # the consumer would wait for ever
            self._results.put(error)

    def _start_tasks(self) -> None:
        # SPREAD: a training worker's placement group has no CPUs for them.
        task = ray.remote(num_cpus=self._task_cpus, scheduling_strategy="SPREAD")(_call)
        function = ray.put(self._function)
        node = ray.get_runtime_context().get_node_id()
        running: list[ray.ObjectRef[dict[str, Any]]] = []
        for chunk in range(self._num_chunks):
            has_room = False
            while not has_room or len(running) >= self._parallel:
                if self._is_stopped.is_set():
                    return
                if not ray.is_initialized():  # a call would start another one
                    raise RuntimeError("Ray was shut down while chunks were computed")
                if not has_room:
                    has_room = self._room.acquire(timeout=SECONDS_TO_STOP)
                else:  # what is on another node is fetched meanwhile
                    _, running = ray.wait(running, num_returns=1, timeout=SECONDS_TO_STOP)
            slot = None if self._pool is None else self._pool.take()
            address = None if slot is None else slot.address
            reference = task.remote(function, chunk, node, address)
            running.append(reference)
            self._results.put(_Started(reference, slot))


@dataclass(frozen=True)
class _Started:
    reference: ray.ObjectRef[dict[str, Any]]
    slot: Slot | None


def _call(
    function: ChunkFunction, chunk: int, node: str, address: Address | None
) -> dict[str, Any]:
    is_here = node == ray.get_runtime_context().get_node_id()
    with task_memory(address if is_here else None):
        return pack(function(chunk))
