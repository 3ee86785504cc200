"""Processes that are needed at once wait for a cluster that grows, and for no other one."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from cluster.session import Session
from jobs.room import Resources, await_room, describe, describe_nodes, fits
from models.errors import ConfigError


@pytest.mark.parametrize(
    ("bundles", "nodes", "expected"),
    [
        ([{"CPU": 1}] * 3, [{"CPU": 2}, {"CPU": 1}], True),
        ([{"CPU": 1}] * 4, [{"CPU": 2}, {"CPU": 1}], False),
        # As many CPUs as are wanted, though no node has two left.
        ([{"CPU": 2}, {"CPU": 2}], [{"CPU": 3}, {"CPU": 1}], False),
        ([{"CPU": 1}, {"CPU": 4}], [{"CPU": 4}, {"CPU": 1}], True),
        ([{"CPU": 1, "GPU": 1}], [{"CPU": 8}], False),
        # The GPU's node has one CPU, which the other task must not take.
        ([{"CPU": 1}, {"CPU": 1, "GPU": 1}], [{"CPU": 1, "GPU": 1}, {"CPU": 1}], True),
        ([{"CPU": 0.5}, {"CPU": 0.5}], [{"CPU": 1}], True),
        ([], [], True),
    ],
)
def test_bundles_fit_where_each_finds_a_node(
    bundles: list[Resources], nodes: list[Resources], expected: bool
) -> None:
    assert fits(bundles, nodes) is expected


@given(st.lists(st.integers(1, 4), max_size=6), st.lists(st.integers(0, 8), max_size=4))
def test_what_fits_takes_no_more_than_there_is(bundles: list[int], nodes: list[int]) -> None:
    wanted, there = [{"CPU": n} for n in bundles], [{"CPU": n} for n in nodes]
    if fits(wanted, there):
        assert sum(bundles) <= sum(nodes)
        assert max(bundles, default=0) <= max(nodes, default=0)
    # Equal ones are packed as well as can be.
    ones = [{"CPU": 1}] * sum(nodes)
    assert fits(ones, there)
    assert not fits([*ones, {"CPU": 1}], there)


def test_bundles_in_words() -> None:
    workers = [{"CPU": 2.0, "GPU": 1.0}] * 4
    assert describe([*workers, {"CPU": 1.0}]) == "4 x 2 CPU + 1 GPU and 1 x 1 CPU"
    assert describe([{"CPU": 0.0, "GPU": 0.0}]) == "1 x 0 CPU"


@pytest.fixture
def connected(ray_session: Session, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a job that was submitted: this Ray is a cluster's, which might grow."""
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    yield
    assert {group["state"] for group in ray.util.placement_group_table().values()} <= {"REMOVED"}


TOO_MUCH: Sequence[Resources] = [{"CPU": 1.0}, {"CPU": 1000.0}]


@pytest.mark.ray
def test_a_ray_of_our_own_is_not_waited_for(ray_session: Session) -> None:
    assert "RAY_ADDRESS" not in os.environ
    began = time.monotonic()
    with pytest.raises(ConfigError) as raised:
        await_room(TOO_MUCH, 60, "Lower it.")
    assert time.monotonic() - began < 5
    assert str(raised.value) == (
        "there is no room for 1 x 1 CPU and 1 x 1000 CPU: the cluster has "
        f"{describe_nodes()}. Lower it."
    )
    await_room([{"CPU": 1.0}], 60, "Lower it.")


@pytest.mark.ray
def test_a_cluster_that_does_not_grow_in_time_is_told(connected: None) -> None:
    with pytest.raises(ConfigError, match=r"still no room .* after 2 s.*Lower it\."):
        await_room(TOO_MUCH, 2, "Lower it.")


@pytest.mark.ray
def test_who_waits_can_be_ended(connected: None) -> None:
    def look() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await_room(TOO_MUCH, 60, "Lower it.", look)


@pytest.mark.ray
def test_waiting_ends_when_there_is_room(connected: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room that others take is none that a node has to bring: that is waited for by Ray itself."""
    cpus = ray.cluster_resources()["CPU"]
    monkeypatch.setattr("jobs.room.node_resources", lambda: [{"CPU": 1.0}])  # as it was before
    taken = ray.util.placement_group([{"CPU": cpus}])
    assert taken.wait(60)
    threading.Timer(3, ray.util.remove_placement_group, [taken]).start()
    began = time.monotonic()
    await_room([{"CPU": cpus}], 60, "Lower it.")
    assert 2 < time.monotonic() - began < 30
