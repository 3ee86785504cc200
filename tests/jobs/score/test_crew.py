"""How many workers there are."""

from __future__ import annotations

import pytest

from jobs.score.crew import Node, Size, choose_size
from models.errors import ConfigError


def test_workers_follow_the_machine_and_not_what_ray_was_told() -> None:
    assert choose_size([Node(4)], num_cpus=2.0) == Size(1, 2)
    assert choose_size([Node(1)], num_cpus=1.0) == Size(1, 1)
    assert choose_size([Node(64)], num_cpus=64.0) == Size(16, 4)


def test_workers_follow_the_machines_of_a_cluster() -> None:
    assert choose_size([Node(0), Node(16), Node(8)]) == Size(6, 4)
    assert choose_size([Node(3), Node(7)]) == Size(3, 3)  # none that no machine has room for
    assert choose_size([Node(0)]) == Size(1, 1)


def test_one_worker_for_each_gpu_shares_the_cpus_beside_it() -> None:
    nodes = [Node(4), Node(16, 2), Node(12, 1)]
    assert choose_size(nodes, has_gpus=True) == Size(3, 8, 1)
    assert choose_size(nodes, has_gpus=True, threads=2, workers=5) == Size(5, 2, 1)
    with pytest.raises(ConfigError, match="no machine of this Ray has a GPU"):
        choose_size([Node(4)], has_gpus=True)


def test_more_than_any_machine_has_is_refused_instead_of_waited_for() -> None:
    with pytest.raises(ConfigError, match=r"--threads 9: .* largest of this Ray has 8"):
        choose_size([Node(2), Node(8)], threads=9)
    assert choose_size([Node(2), Node(8)], threads=8) == Size(1, 8)
    # Ray may be told of more CPUs than are real: it then has room.
    assert choose_size([Node(4)], num_cpus=2.0, threads=4) == Size(1, 4)
    with pytest.raises(ConfigError, match=r"no machine of this Ray has a GPU, .* has 4 CPUs"):
        choose_size([Node(4)], has_gpus=True, workers=2)
    with pytest.raises(ConfigError, match=r"--threads 5: .* with a GPU has 4 CPUs"):
        choose_size([Node(64), Node(4, 1)], has_gpus=True, threads=5)
    with pytest.raises(ConfigError, match=r"with a GPU has 0 CPUs"):
        choose_size([Node(64), Node(0, 1)], has_gpus=True)


def test_what_was_asked_for_counts() -> None:
    assert choose_size([Node(16)], workers=3, threads=1) == Size(3, 1)
    assert str(Size(3, 1)) == "3 workers of 1 thread"
    assert str(Size(1, 8, 1)) == "1 worker of 8 threads and a GPU"
