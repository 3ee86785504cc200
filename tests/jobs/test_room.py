"""Processes that are needed at once wait for a cluster that grows, and for no other one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from cluster.environment import FIXED
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
        # In floating point 5 x 1.2 + 1 is a little more than 7.
        ([*[{"CPU": 1.2}] * 5, {"CPU": 1.0}], [{"CPU": 7.0}], True),
        ([*[{"CPU": 1.2}] * 5, {"CPU": 1.001}], [{"CPU": 7.0}], False),
        # Who needs no GPU leaves the CPU beside one alone, also where it needs more of them.
        ([{"CPU": 0.5, "GPU": 1}, {"CPU": 1}], [{"CPU": 1, "GPU": 1}, {"CPU": 1}], True),
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
    before = _groups()
    yield
    until = time.monotonic() + 10  # Ray removes them a moment after it was asked to
    while (left := _groups() - before) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left


def _groups() -> set[str]:
    table = ray.util.placement_group_table()
    return {name for name, group in table.items() if group["state"] != "REMOVED"}


TOO_MUCH: Sequence[Resources] = [{"CPU": 1.0}, {"CPU": 1000.0}]


@pytest.mark.ray
def test_a_ray_of_our_own_is_not_waited_for(ray_session: Session) -> None:
    assert "RAY_ADDRESS" not in os.environ
    with pytest.raises(ConfigError) as raised:
        await_room(TOO_MUCH, 600, "Lower it.")
    assert str(raised.value) == (
        "there is no room for 1 x 1 CPU and 1 x 1000 CPU: the cluster has "
        f"{describe_nodes()}. Lower it."
    )
    await_room([{"CPU": 1.0}], 600, "Lower it.")


@pytest.mark.ray
def test_nor_is_one_that_outlives_its_command(
    connected: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [{**node, "Labels": {FIXED: "true"}} for node in ray.nodes()]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    with pytest.raises(ConfigError, match="there is no room"):
        await_room(TOO_MUCH, 600, "Lower it.")


@pytest.mark.ray
def test_a_cluster_that_does_not_grow_in_time_is_told(
    connected: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.room.SECONDS_BETWEEN_LINES", 1.5)
    with pytest.raises(ConfigError, match=r"after 4 s there is still no room .*Lower it\."):
        await_room(TOO_MUCH, 4, "Lower it.")
    lines = [record.getMessage() for record in caplog.records if record.name == "jobs.room"]
    assert len(lines) >= 2
    assert "waiting 4 s more for nodes" in lines[0]


@pytest.mark.ray
def test_who_waits_can_be_ended(connected: None) -> None:
    def look() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await_room(TOO_MUCH, 600, "Lower it.", look)


@pytest.mark.ray
def test_a_node_that_comes_is_enough_though_others_have_taken_the_room(
    connected: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others take is waited for by Ray itself, without a limit."""
    cpus = ray.cluster_resources()["CPU"]
    taken = ray.util.placement_group([{"CPU": cpus}])
    assert taken.wait(60)
    come = time.monotonic() + 3
    there, more = [{"CPU": cpus}], [{"CPU": cpus}, {"CPU": 1.0}]
    monkeypatch.setattr(
        "jobs.room.node_resources", lambda: more if time.monotonic() > come else there
    )
    try:
        await_room([{"CPU": cpus}, {"CPU": 1.0}], 600, "Lower it.")
        assert time.monotonic() > come
    finally:
        ray.util.remove_placement_group(taken)


@pytest.mark.ray
def test_room_that_is_found_is_given_back(connected: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the node that came is not in the list of nodes yet."""
    monkeypatch.setattr("jobs.room.node_resources", list)
    cpus = ray.cluster_resources()["CPU"]
    await_room([{"CPU": cpus}], 600, "Lower it.")
    taken = ray.util.placement_group([{"CPU": cpus}])
    assert taken.wait(60)
    ray.util.remove_placement_group(taken)
