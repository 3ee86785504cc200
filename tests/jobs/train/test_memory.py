"""Memory that ran out is told with what to lower."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from cluster.environment import free_bytes
from jobs.train.memory import OutOfMemoryError, cache_bytes, explained_shortage
from models.errors import DataError
from tests.jobs.train.test_loop import make_config


def told(error: BaseException, **changes: object) -> str:
    """Return what is raised instead of an error."""
    with pytest.raises(OutOfMemoryError) as raised, explained_shortage(make_config(**changes)):
        raise error
    return str(raised.value)


def told_in_a_thread(ask: Callable[[], object]) -> str:
    """Return what is raised instead of the error of a call that asks for too much memory.

    In a thread of its own, as glibc moves a thread whose `malloc` failed to another arena for good:
    tests/pages.py finds other figures in a main thread to which that happened.
    """

    def ask_for_it() -> None:
        with explained_shortage(make_config()):
            ask()

    with ThreadPoolExecutor(1) as pool, pytest.raises(OutOfMemoryError) as raised:
        pool.submit(ask_for_it).result()
    return str(raised.value)


def test_memory_that_torch_cannot_get_names_batch_and_image_size() -> None:
    said = told_in_a_thread(lambda: torch.empty(1 << 60, dtype=torch.uint8))
    assert re.search(r"training process .* batch_size \(now 16\)", said)


def test_memory_that_numpy_cannot_get_is_known_too() -> None:
    said = told_in_a_thread(lambda: np.empty(1 << 60, dtype=np.uint8))
    assert "preprocess.height and .width (now 32 x 32)" in said


def test_a_gpu_is_told_as_one() -> None:
    gpu = {"use_gpu": True}
    said = told(
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), workers=gpu
    )
    assert "memory of the GPU ran out" in said
    assert "precision: bf16" in said
    assert "2.00 GiB" in said
    other = told(RuntimeError("CUDA error: out of memory"), workers=gpu, precision="bf16")
    assert "of the GPU" in other
    assert "set precision" not in other


def test_a_frozen_backbone_is_told_what_its_features_take() -> None:
    """Batches are of a fixed size there, and bfloat16 is on already on a GPU."""
    import ray.exceptions

    frozen = {"network": {"freeze": "backbone"}}
    gpu = told(torch.OutOfMemoryError("CUDA out of memory"), workers={"use_gpu": True}, **frozen)
    node = told(ray.exceptions.OutOfMemoryError("Memory on the node was 15.9GB / 16GB"), **frozen)
    for said in (gpu, node, told(MemoryError(), **frozen)):
        assert "preprocess.height and .width (now 32 x 32)" in said
        assert "Another size or backbone needs another `run`" in said
        for idle in ("batch_size", "bf16", "cache_gib", "checkpoint"):
            assert idle not in said
    assert "data.images_per_task (now 512)" in node


def test_it_is_said_what_the_same_run_does_not_take() -> None:
    said = told(MemoryError())
    assert "With the same `run` it goes on from the last checkpoint" in said
    assert "another batch_size, size or backbone needs another `run`" in said


def test_several_workers_are_told_to_split_the_network() -> None:
    shortage = torch.OutOfMemoryError("CUDA out of memory")
    assert "shard" not in told(shortage, workers={"num_workers": 1})
    two = {"num_workers": [1, 2]}
    assert "set workers.shard: true" in told(shortage, workers=two)
    assert "shard" not in told(shortage, workers=two, network={"freeze": "backbone"})
    said = told(shortage, workers={**two, "shard": True})
    assert "take more workers" in said
    assert "set workers.shard" not in said


def test_a_process_that_ray_ended_names_what_a_node_holds() -> None:
    import ray.exceptions

    killed = ray.exceptions.OutOfMemoryError("Memory on the node was 15.9GB / 16GB")
    task = RuntimeError("task failed")
    task.__cause__ = killed
    said = told(task)
    assert "data.images_per_task (now 512)" in said
    assert "data.cache_gib (now a quarter of what is free)" in said
    assert "15.9GB / 16GB" in said


@pytest.mark.slow
def test_a_worker_that_ray_ended_is_found_in_what_ray_train_raises() -> None:
    import ray.exceptions
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    killed = ray.exceptions.OutOfMemoryError("Memory on the node was 15.9GB / 16GB")
    dead = WorkerHealthCheckFailedError("the worker died", killed)
    assert "a node ran out" in told(WorkerGroupError("workers failed", {1: dead}))


@pytest.mark.slow
def test_a_worker_that_ray_ended_as_it_began_is_found_too() -> None:
    from pickle import dumps, loads

    import ray.exceptions
    from ray.train import ControllerError

    killed = ray.exceptions.OutOfMemoryError("Memory on the node was 15.9GB / 16GB")
    assert "a node ran out" in told(loads(dumps(ControllerError(killed))))


@pytest.mark.parametrize(
    "error", [DataError("no images"), RuntimeError("shapes differ"), KeyboardInterrupt()]
)
def test_other_errors_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, explained_shortage(make_config()):
        raise error
    assert raised.value is error


def test_workers_of_one_machine_share_its_room_for_images(monkeypatch: pytest.MonkeyPatch) -> None:
    given = make_config(data={"uri": "images", "cache_gib": 2})
    assert cache_bytes(given) == 2 << 30
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cache_bytes(given) == 1 << 29
    assert 0 < cache_bytes(make_config()) < free_bytes() / 8
    assert cache_bytes(make_config(network={"freeze": "backbone"})) == 0
