"""The benchmark of batch scoring without a measurement."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from benchmarks.batch_scoring import Plan, link_many, num_logical_cpus


def test_ray_is_told_of_room_for_all_crews() -> None:
    plan = Plan("bundle", Path(), Path(), [None, 1, 3], 1, 1.0)
    sizes = plan.sizes(2)
    found = {name: (size.num_workers, size.num_threads) for name, size in sizes.items()}
    assert found == {
        "jobs.score": (1, 2),
        "jobs.score 1 workers": (1, 2),
        "jobs.score 3 workers": (3, 1),
    }
    assert num_logical_cpus(sizes.values()) == 7


def test_photos_on_another_file_system_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(bytes([number]))

    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    link_many(tmp_path / "photos", tmp_path / "linked", 7)
    monkeypatch.setattr(os, "link", refuse)
    link_many(tmp_path / "photos", tmp_path / "copied", 7)
    for name in ("linked", "copied"):
        files = sorted((tmp_path / name).rglob("*.jpg"))
        assert [path.read_bytes()[0] for path in files] == [0, 1, 2, 0, 1, 2, 0]
