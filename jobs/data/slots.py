"""Memory that tasks write their results into, and that is used again when nobody looks any more.

What a task returns, Ray copies into its object store. That memory is everybody's and read-only, so
a consumer that wants its own copies it once more: 4 + 5 ms for 29 MB of images, of 165 ms that
reading and decoding them takes. A slot is memory of the consumer instead, which the tasks on its
node write into directly: no copy at all. Tasks elsewhere return their results by Ray as ever.

A slot is an anonymous file (memfd_create(2)): it has no name in any file system, so that nothing
is left of it when a process is killed. Tasks open it through /proc by process and descriptor, and
look whether it is still the one that was meant.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import queue
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Shape = tuple[int, ...]

UNIT = 4 << 20  # of sizes, so that the slots of one split fit another one's chunks, too
MAX_POOLS = 2  # of training and of validation
SECONDS_TO_RETURN = 0.02  # that are waited for a slot on its way back, rather than make one more


@dataclass(frozen=True)
class Address:
    """Where a slot is to be found, on one machine."""

    process: int
    descriptor: int
    name: str
    num_bytes: int


@dataclass(frozen=True)
class InSlot:
    """Stands in a task's result for the array that is at the beginning of its slot."""

    shape: Shape


# The consumer's side


class Slot:
    """Some shared memory of this process."""

    _numbers = itertools.count()

    def __init__(self, num_bytes: int) -> None:
        self._name = f"sightline-{os.getpid()}-{next(self._numbers)}-{os.urandom(4).hex()}"
        with contextlib.ExitStack() as closing:
            descriptor = os.memfd_create(self._name)
            closing.callback(os.close, descriptor)
            os.ftruncate(descriptor, num_bytes)
            self._map = mmap.mmap(descriptor, num_bytes)
            closing.pop_all()
        weakref.finalize(self, os.close, descriptor)
        self.address = Address(os.getpid(), descriptor, self._name, num_bytes)

    def first(self, count: int) -> npt.NDArray[np.uint8]:
        """Return the first bytes. Every view of the array has it as its base, and keeps it."""
        return np.frombuffer(self._map, np.uint8, count)


class SlotPool:
    """Slots of one size. At most `keep` of them wait to be used again."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.keep = 0
        # Of all queues the one whose `put` may be called by a finaliser, at any moment.
        self._free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        self._alive: weakref.WeakSet[Slot] = weakref.WeakSet()

    def take(self) -> Slot | None:
        """Return a slot that nobody uses, or None where this system gives no memory of this kind.
        One that is not handed on to `hand_out` is forgotten: a task may still be writing into it.

        Beside `keep` slots there is one that is being looked at. Who asks for the next one still
        has it for a moment.
        """
        is_full = len(self._alive) > self.keep
        with contextlib.suppress(queue.Empty):
            return self._free.get(timeout=SECONDS_TO_RETURN if is_full else 0)
        with contextlib.suppress(OSError, AttributeError):  # not allowed; not Linux
            slot = Slot(self.num_bytes)
            self._alive.add(slot)
            return slot
        return None

    def hand_out(self, slot: Slot, shape: Shape) -> npt.NDArray[np.uint8]:
        """Return a task's result, writable; the slot is used again when neither the array nor a
        view of it is left. The task must have ended.
        """
        array = slot.first(int(np.prod(shape, dtype=np.int64)))
        weakref.finalize(array, self._give_back, slot).atexit = False
        return array.reshape(shape)

    def _give_back(self, slot: Slot) -> None:
        if self._free.qsize() < self.keep:
            self._free.put(slot)


_pools: dict[int, SlotPool] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # what is in them is the parent's


def pool_for(num_bytes: int, keep: int) -> SlotPool:
    """Return the pool of this process for slots of at least so many bytes."""
    size = -(-max(1, num_bytes) // UNIT) * UNIT
    pool = _pools.pop(size, None) or SlotPool(size)
    _pools[size] = pool  # behind the others: the first goes
    if len(_pools) > MAX_POOLS:
        del _pools[next(iter(_pools))]
    pool.keep = keep
    return pool


# The task's side


class _TaskMemory:
    """What `room_for` gives from within a task."""

    def __init__(self) -> None:
        self.address: Address | None = None
        self.given: npt.NDArray[np.uint8] | None = None
        self.opened: dict[str, tuple[Address, mmap.mmap]] = {}
        self.private = np.empty(0, dtype=np.uint8)


_task = _TaskMemory()


def room_for(shape: Shape) -> npt.NDArray[np.uint8]:
    """Return memory for what the task returns: in its slot, where it has one on this node, else the
    same for every task of this process. Once in a task.

    Ray has copied what a task returned before it runs the next one. Fresh memory would be fetched
    from the kernel, zeroed, each time: filling and copying 29 MB of it took 20 ms, of memory that
    was there 4.
    """
    count = int(np.prod(shape, dtype=np.int64))
    memory = _open_slot(_task.address)
    if memory is not None and count <= len(memory):
        _task.given = np.frombuffer(memory, np.uint8, count).reshape(shape)
        return _task.given
    if len(_task.private) < count:
        _task.private = np.empty(count, dtype=np.uint8)
    return _task.private[:count].reshape(shape)


@contextmanager
def task_memory(address: Address | None) -> Iterator[None]:
    """Give `room_for` the slot of one task."""
    _task.address, _task.given = address, None
    try:
        yield
    finally:
        _task.address, _task.given = None, None


def pack(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's result with a stand-in for the array that is in its slot."""
    given = _task.given
    if given is None:
        return dict(columns)
    # Under two names it would be handed out, and given back, twice.
    assert sum(column is given for column in columns.values()) <= 1
    stand_in = InSlot(given.shape)
    return {name: stand_in if column is given else column for name, column in columns.items()}


def _open_slot(address: Address | None) -> mmap.mmap | None:
    """Return a slot's memory, kept open for the next task; None where there is none to be had."""
    if address is None:
        return None
    for name, (known, _) in list(_task.opened.items()):
        if not _is_there(known):
            del _task.opened[name]
    if address.name not in _task.opened:
        memory = _map(address)
        if memory is None:
            return None
        _task.opened[address.name] = (address, memory)
    return _task.opened[address.name][1]


def _map(address: Address) -> mmap.mmap | None:
    try:
        # A descriptor may have been closed and its number given to something else meanwhile.
        descriptor = os.open(_path(address), os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # another user's, or another name space
        return None
    try:
        if os.readlink(f"/proc/self/fd/{descriptor}") != _link(address):
            return None
        return mmap.mmap(descriptor, address.num_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)


def _is_there(address: Address) -> bool:
    try:
        return os.readlink(_path(address)) == _link(address)
    except OSError:
        return False


def _path(address: Address) -> str:
    return f"/proc/{address.process}/fd/{address.descriptor}"


def _link(address: Address) -> str:
    return f"/memfd:{address.name} (deleted)"
