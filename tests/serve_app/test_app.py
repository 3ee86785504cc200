"""What `build` decides from the cluster as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from models.errors import ConfigError
from serve_app.app import cores_of, filling, has_room, scaling_of, seconds_to_leave, spread_over
from serve_app.config import ServeOptions


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([{"CPU": 1.0}], True),
        ([{"CPU": 0.5}, {"CPU": 0.5}], False),  # enough in all, on no node
        ([{"CPU": 0.0}, {"CPU": 2.0, "GPU": 1.0}], True),
        ([{}], False),  # Ray leaves out what is all taken
        ([], False),
    ],
)
def test_there_is_room_for_a_replica_where_one_node_has_it(
    nodes: list[Mapping[str, float]], expected: bool
) -> None:
    assert has_room({"CPU": 1, "GPU": 0}, nodes) == expected


def test_the_cpu_and_the_gpu_have_to_be_on_the_same_node() -> None:
    assert not has_room({"CPU": 1, "GPU": 1}, [{"CPU": 4.0}, {"GPU": 1.0}])
    assert has_room({"CPU": 1, "GPU": 1}, [{"CPU": 4.0}, {"CPU": 1.0, "GPU": 1.0}])


def test_only_the_node_that_looks_counts_its_own_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head of two cores once counted two of sixteen on each of its workers."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    nodes = [
        {"NodeID": "head", "Alive": True, "Resources": {"CPU": 4.0}},  # told of more than it has
        {"NodeID": "worker", "Alive": True, "Resources": {"CPU": 16.0}},
        {"NodeID": "gone", "Alive": False, "Resources": {"CPU": 16.0}},
        {"NodeID": "empty", "Alive": True, "Resources": {}},
    ]
    assert cores_of(nodes, "head") == [2, 16, 0]


def test_a_replica_may_leave_no_sooner_than_its_longest_request() -> None:
    options = ServeOptions(bundle="x", deadline_seconds=300)
    assert seconds_to_leave(options) > 300 + options.limits.upload_seconds + 30


@pytest.mark.parametrize(
    ("nodes", "replicas", "threads"),
    [
        ([1], 1, 1),
        ([2], 1, 2),
        ([4], 1, 4),
        ([5], 2, 2),
        ([6], 2, 3),
        ([8], 2, 4),
        ([18], 6, 3),
        ([0, 8], 2, 4),  # a head that takes no work
        ([8, 8, 8], 6, 4),
        ([8, 2], 5, 2),
        ([0], 1, 1),
    ],
)
def test_replicas_fill_the_nodes_with_up_to_four_threads_each(
    nodes: list[int], replicas: int, threads: int
) -> None:
    assert spread_over(nodes) == (replicas, threads)


@pytest.mark.parametrize(
    ("nodes", "said", "replicas", "threads"),
    [
        ([2], {}, 1, 2),
        ([8, 8], {}, 4, 4),
        ([2], {"threads": 2}, 1, 2),  # there were two of them, with four threads on two cores
        ([8], {"threads": 4}, 2, 4),
        ([8], {"threads": 3}, 2, 3),
        ([2, 6], {"threads": 4}, 1, 4),  # no replica lies on two nodes
        ([2], {"threads": 4}, 1, 4),
        ([8], {"num_cpus": 2}, 4, 2),
        ([8], {"num_cpus": 2.5}, 2, 3),
        ([8], {"num_cpus": 0.5}, 8, 1),
        ([8], {"num_cpus": 0}, 8, 1),
        ([8], {"num_cpus": 4, "threads": 1}, 2, 1),
        ([8], {"num_cpus": 1, "threads": 4}, 2, 4),
    ],
)
def test_the_threads_of_all_replicas_fill_the_cores_and_no_more(
    nodes: list[int], said: dict[str, float], replicas: int, threads: int
) -> None:
    options = filling(ServeOptions.model_validate({"bundle": "x", **said}), nodes)
    assert (options.replicas, options.engine_options.num_threads) == (replicas, threads)


@pytest.mark.parametrize(
    ("said", "target", "bound"),
    [
        ({}, 8, 6),  # as the guide once had it
        ({}, 4.5, 6),
        ({}, 4, None),
        ({"threads": 2}, 8, None),
        ({"num_cpus": 2}, 8, None),
        ({"busy_requests": 12}, 8, None),
        ({"busy_requests": 2}, 2, 2),
        ({"max_requests": 4}, 3, 4),
        ({"engines": ["torch"]}, 22, 32),
        ({"engines": ["torch"]}, 21, None),
        ({"num_gpus": 1}, 64, None),
        ({"num_gpus": 1}, 65, 96),
    ],
)
def test_a_target_that_no_overload_reaches_is_refused(
    said: dict[str, Any], target: float, bound: int | None
) -> None:
    """Eight replicas that refused had six requests each: Serve scaled them down to three."""
    options = ServeOptions.model_validate({"bundle": "x", **said})
    settings = {"max_replicas": 8, "target_ongoing_requests": target}
    if bound is None:
        assert scaling_of(options, settings).get_target_ongoing_requests() == target
        return
    with pytest.raises(ConfigError) as refused:
        scaling_of(options, settings)
    message = str(refused.value)
    assert f"target_ongoing_requests = {target:g}" in message
    assert f"no more than {bound} requests" in message
    assert f"set it to {bound * 2 / 3:.3g} or less" in message


def test_serves_own_target_suits_a_replica_as_it_comes() -> None:
    assert scaling_of(ServeOptions(bundle="x"), {}).get_target_ongoing_requests() == 2
