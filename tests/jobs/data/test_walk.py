"""Local folders as cameras, old shares and tired users leave them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.data.config import DataConfig
from jobs.data.sources import list_source
from jobs.data.walk import list_folders, walk
from models.errors import AccessError, NotFoundError
from tests.jobs.data.images import class_files, jpeg, write

NOBODY = 65534


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sound classes, and beside their images everything that ends other walks."""
    write(tmp_path, class_files({"bad": 2, "ok": 2}))
    write(tmp_path, {"ok/deep/z.jpg": jpeg(9), ".git/x.jpg": jpeg(8), "ok/notes.txt": b""})
    odd(tmp_path / "ok", b"odd\xff.jpg").write_bytes(jpeg(7))
    (tmp_path / "ok" / "circle").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "ok" / "itself.jpg").symlink_to("itself.jpg")
    (tmp_path / "ok" / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(tmp_path / "ok" / "pipe.jpg")
    return tmp_path


def odd(folder: Path, name: bytes) -> Path:
    """Return a path whose name is no UTF-8."""
    return Path(os.fsdecode(os.fsencode(folder) + b"/" + name))


@contextmanager
def forbidden(name: str) -> Iterator[Path]:
    """A root with one sound class, and a folder in it that may not be listed; nobody may do all."""
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        root.chmod(0o755)
        write(root, class_files({"bad": 1, "ok": 1}))
        (root / name).mkdir(mode=0)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(NOBODY)
        try:
            yield root
        finally:
            if is_root:
                os.seteuid(0)
            (root / name).chmod(0o700)


def test_a_walk_is_sorted_and_passes_by_circles_and_what_is_hidden(folder: Path) -> None:
    found = {os.fsencode("/".join(each.parts)): each.is_regular for each in walk(str(folder))}
    assert list(found) == [
        *(b"bad/0000.jpg", b"bad/0001.jpg", b"ok/0000.jpg", b"ok/0001.jpg", b"ok/deep/z.jpg"),
        *(b"ok/gone.jpg", b"ok/itself.jpg", b"ok/notes.txt", b"ok/odd\xff.jpg", b"ok/pipe.jpg"),
    ]
    irregular = {name for name, is_regular in found.items() if not is_regular}
    assert irregular == {b"ok/gone.jpg", b"ok/itself.jpg", b"ok/pipe.jpg"}
    everything = ["/".join(each.parts) for each in walk(str(folder), with_hidden=True)]
    assert everything[0] == ".git/x.jpg"


def test_a_link_to_another_folder_is_followed(tmp_path: Path) -> None:
    write(tmp_path, {"store/a/1.jpg": jpeg(1)})
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "ok").symlink_to(tmp_path / "store" / "a")
    assert [each.parts for each in walk(str(tmp_path / "images"))] == [("ok", "1.jpg")]


def test_folders_that_lead_back_are_no_classes(folder: Path) -> None:
    assert list_folders(str(folder)) == ["bad", "ok"]
    assert list_folders(str(folder), "ok") == ["deep"]
    with pytest.raises(NotFoundError, match="does not exist"):
        list_folders(str(folder / "nowhere"))
    with pytest.raises(NotFoundError, match="is a file"):
        list_folders(str(folder / "ok" / "notes.txt"))


def test_a_data_set_lists_what_no_row_can_name_as_broken(folder: Path) -> None:
    listing = list_source(DataConfig(uri=str(folder)))
    assert sorted(Path(path).name for path in listing.table["path"].to_pylist()) == [
        *("0000.jpg", "0000.jpg", "0001.jpg", "0001.jpg", "z.jpg")
    ]
    assert listing.ignored == 2
    reasons = {each.path: each.reason for each in listing.broken}
    assert set(reasons) == {
        *(rf"{folder}/ok/odd\xff.jpg", f"{folder}/ok/gone.jpg"),
        *(f"{folder}/ok/itself.jpg", f"{folder}/ok/pipe.jpg"),
    }
    assert "no UTF-8" in reasons[rf"{folder}/ok/odd\xff.jpg"]
    assert "leads nowhere" in reasons[f"{folder}/ok/gone.jpg"]


def test_a_class_whose_folder_is_no_utf_8_is_listed_as_broken(tmp_path: Path) -> None:
    write(tmp_path, class_files({"bad": 1, "ok": 1}))
    odd(tmp_path, b"\xe4").mkdir()
    (odd(tmp_path, b"\xe4") / "a.jpg").write_bytes(jpeg(1))
    listing = list_source(DataConfig(uri=str(tmp_path)))
    assert [each.path for each in listing.broken] == [rf"{tmp_path}/\xe4/a.jpg"]


def test_a_folder_that_may_not_be_listed_is_named() -> None:
    with forbidden("ok/secret") as root:
        with pytest.raises(AccessError, match=r"cannot list .*ok/secret: Permission denied"):
            list(walk(str(root)))
        with pytest.raises(AccessError, match="ok/secret"):
            list_source(DataConfig(uri=str(root)))


def test_a_hidden_folder_that_may_not_be_listed_is_passed_by() -> None:
    with forbidden(".Trash-0") as root:
        assert list_source(DataConfig(uri=str(root))).table.num_rows == 2
