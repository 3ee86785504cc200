"""A set as users have them, loose and packed."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.session import Session
from tests.jobs.data.images import BROKEN, class_files, write
from tests.jobs.data.packs import pack


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 200 images with splits of its own, some 250 kB, and two broken ones."""
    root = tmp_path_factory.mktemp("pack")
    write(root / "train", class_files({"bad": 40, "ok": 100}))
    write(root / "test", class_files({"bad": 20, "ok": 40}, start=1_000))
    write(root / "train" / "ok", {name: BROKEN[name] for name in ("text.jpg", "truncated.jpg")})
    return root


@pytest.fixture(scope="session")
def packed(ray_session: Session, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("packed")
    pack(folder, dest)
    return dest
