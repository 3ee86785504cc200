"""What `build` decides from the cluster as it is."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from serve_app.app import has_room, shared_out


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


@pytest.mark.parametrize(
    ("cores", "replicas", "threads"),
    [(1, 1, 1), (2, 1, 2), (4, 1, 4), (5, 2, 2), (6, 2, 3), (8, 2, 4), (16, 4, 4), (18, 5, 3)],
)
def test_a_replica_has_up_to_four_cores_and_none_has_more_than_another(
    cores: int, replicas: int, threads: int
) -> None:
    assert shared_out(cores) == (replicas, threads)
