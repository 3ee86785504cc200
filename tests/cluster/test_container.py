"""What control groups of both versions say of the limits of a container."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

import cluster.environment
from cluster.container import free_memory, limited_cores
from cluster.environment import object_store_bytes, usable_cores


def groups(folder: Path, files: Mapping[str, str]) -> Path:
    """Write the files that a kernel shows."""
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"{text}\n")
    return folder


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "400000 100000"}, 4),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "what"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
    ],
)
def test_cores_are_those_whose_time_may_be_used(
    tmp_path: Path, files: Mapping[str, str], cores: int | None
) -> None:
    assert limited_cores(groups(tmp_path, files)) == cores


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        ({"memory.max": "max", "memory.current": "5"}, None),
        ({"memory.max": "8000", "memory.current": "3000"}, 5000),
        ({"memory.max": "8000", "memory.current": "9000"}, 0),
        (
            {
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/memory.usage_in_bytes": "5",
            },
            None,
        ),
        ({"memory/memory.limit_in_bytes": "800", "memory/memory.usage_in_bytes": "300"}, 500),
    ],
)
def test_memory_is_what_is_left_of_the_limit(
    tmp_path: Path, files: Mapping[str, str], free: int | None
) -> None:
    assert free_memory(groups(tmp_path, files)) == free


def test_a_session_is_sized_by_its_container(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a large machine a small container was ended for taking an eighth of its memory."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(cluster.environment, "limited_cores", lambda: 4)
    monkeypatch.setattr(cluster.environment, "free_memory", lambda: 1000)
    assert (usable_cores(), object_store_bytes()) == (4, 200)
    monkeypatch.setattr(cluster.environment, "limited_cores", lambda: None)
    assert usable_cores() == 64
