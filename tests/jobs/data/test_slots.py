"""Memory shared with tasks: who may write where, and when it is used again. Without Ray."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.data import slots
from jobs.data.slots import Address, InSlot, SlotPool, pack, pool_for, room_for, task_memory

SHAPE = (4, 2, 2, 3)


@pytest.fixture
def pool() -> SlotPool:
    slots._task.opened.clear()
    pool = SlotPool(1 << 20)
    pool.keep = 2
    return pool


def descriptors() -> int:
    """Return how many slots this process has open; a mapping has a descriptor of its own."""
    links = {os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
    return sum("memfd:sightline-" in link for link in links)


def fill(address: Address | None, value: int) -> object:
    """Be a task that fills what it is given; return what it would send."""
    with task_memory(address):
        room = room_for(SHAPE)
        room[:] = value
        return pack({"image": room, "id": np.arange(4)})["image"]


def test_what_a_process_writes_another_one_reads_without_a_copy(pool: SlotPool) -> None:
    slot = pool.take()
    assert slot is not None
    with multiprocessing.get_context("spawn").Pool(1) as workers:
        assert workers.apply(fill, (slot.address, 7)) == InSlot(SHAPE)
        images = pool.hand_out(slot, SHAPE)
        assert images.tolist() == np.full(SHAPE, 7).tolist()
        # The same memory, though nobody handed it over again.
        workers.apply(fill, (slot.address, 8))
        assert images[3, 1, 1, 2] == 8


@pytest.mark.parametrize(
    "keep",
    [
        lambda images: images[1:3],
        lambda images: images[1:3].reshape(-1)[::2],
        lambda images: torch.from_numpy(images[2:]),
        lambda images: torch.from_numpy(images).permute(0, 3, 1, 2)[1:],
        lambda images: memoryview(images[1]),
    ],
)
def test_a_slot_is_not_used_again_while_any_view_of_it_is_left(
    pool: SlotPool, keep: object
) -> None:
    slot = pool.take()
    assert slot is not None
    fill(slot.address, 5)
    images = pool.hand_out(slot, SHAPE)
    view = keep(images)  # type: ignore[operator]
    del images
    other = pool.take()
    assert other is not slot
    del view
    assert pool.take() is slot


def test_a_slot_that_was_not_handed_out_is_forgotten(pool: SlotPool) -> None:
    before = descriptors()
    slot = pool.take()
    assert slot is not None
    assert descriptors() == before + 1
    address = slot.address
    del slot
    assert descriptors() == before
    # A task that comes late writes nowhere but into its own memory.
    assert isinstance(fill(address, 1), np.ndarray)


def test_no_more_slots_wait_than_are_to_be_kept(pool: SlotPool) -> None:
    before = descriptors()
    held = []
    for _ in range(5):
        slot = pool.take()
        assert slot is not None
        held.append(pool.hand_out(slot, SHAPE))
    del slot
    assert descriptors() == before + 5
    held.clear()
    assert descriptors() == before + 2


def test_a_slot_on_its_way_back_is_waited_for_rather_than_one_more_made(
    pool: SlotPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "SECONDS_TO_RETURN", 60.0)
    made = [pool.take() for _ in range(pool.keep + 1)]
    slot = made[0]
    assert slot is not None
    looked_at = [pool.hand_out(slot, SHAPE)]
    timer = threading.Timer(0.1, looked_at.clear)
    timer.start()
    assert pool.take() is slot
    timer.join()


def test_a_slot_that_does_not_come_back_holds_nobody_up(pool: SlotPool) -> None:
    made = [pool.take() for _ in range(pool.keep + 4)]
    assert None not in made
    assert len(set(map(id, made))) == pool.keep + 4


def test_the_descriptor_of_something_else_is_not_written_to(pool: SlotPool, tmp_path: Path) -> None:
    slot = pool.take()
    assert slot is not None
    address = slot.address
    del slot
    path = tmp_path / "precious"
    path.write_bytes(b"x" * (1 << 20))
    opened = []
    while address.descriptor not in opened:  # the lowest number that is free is given away
        opened.append(os.open(path, os.O_RDWR))
    try:
        assert isinstance(fill(address, 9), np.ndarray)
    finally:
        for descriptor in opened:
            os.close(descriptor)
    assert path.read_bytes() == b"x" * (1 << 20)


def test_what_is_gone_is_not_kept_open_by_tasks(pool: SlotPool) -> None:
    slot = pool.take()
    assert slot is not None
    fill(slot.address, 1)
    name = slot.address.name
    assert name in slots._task.opened
    other = pool.take()
    del slot
    assert other is not None
    fill(other.address, 2)
    assert list(slots._task.opened) == [other.address.name]


def test_a_result_that_is_too_large_for_its_slot_travels_as_it_is(pool: SlotPool) -> None:
    slot = pool.take()
    assert slot is not None
    with task_memory(slot.address):
        room = room_for((2, 1 << 20))
        room[:] = 3
        assert pack({"image": room})["image"] is room


def test_without_such_memory_there_is_no_slot(
    pool: SlotPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> int:
        raise PermissionError(name)

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert pool.take() is None
    monkeypatch.delattr(os, "memfd_create")
    assert pool.take() is None


def test_pools_are_kept_by_size_and_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "_pools", {})
    first = pool_for(1 << 20, keep=3)
    assert pool_for((4 << 20) - 5, keep=6) is first
    assert first.keep == 6
    assert first.num_bytes == 4 << 20
    for size in range(2, 6):
        pool_for(size * (4 << 20), keep=1)
    assert pool_for(1 << 20, keep=3) is not first
    assert len(slots._pools) == slots.MAX_POOLS
