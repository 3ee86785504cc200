"""Reading images where they lie."""

from __future__ import annotations

import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest

from jobs.data import places
from jobs.data.places import Place, group_reads, read_each, read_place
from models.decoders import DEFAULT_LIMITS, ImageLimits
from models.errors import ImageDecodeError, ImageTooLargeError, NotFoundError, StorageError
from models.storage import open_store
from tests.conftest import S3Server


def test_many_threads_read_more_files_than_are_kept_open(tmp_path: Path) -> None:
    """A file that was forgotten while a thread read it was closed under its hands."""
    for number in range(400):
        (tmp_path / str(number)).write_bytes(number.to_bytes(2, "big") * 50)
    wanted = [Place("x", str(tmp_path / str(n % 400)), 10, 20) for n in range(8_000)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read_place, wanted))
    assert all(data == (n % 400).to_bytes(2, "big") * 10 for n, data in enumerate(found))


def test_a_file_replaced_under_its_name_is_read_anew(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"0123456789")
    assert read_place(Place("x", str(path), 2, 3)) == b"234"
    other.write_bytes(b"abcdefghij")
    other.replace(path)
    assert read_place(Place("x", str(path), 2, 3)) == b"cde"


def test_ranges_in_a_bucket_share_a_request_only_if_they_lie_close() -> None:
    near = [Place("a", "s3://b/x", 0, 100), Place("b", "s3://b/x", 100, 100)]
    far = Place("c", "s3://b/x", 10 << 20, 100)
    other = Place("d", "s3://b/y", 200, 100)
    large = Place("e", "s3://b/x", 200, 5 << 20)
    groups = group_reads([near[1], far, other, near[0], large, Place("loose.jpg")])
    assert sorted(map(sorted, groups)) == [[0, 3], [1], [2], [4], [5]]
    local = [Place("a", "/x", 0, 100), Place("b", "/x", 100, 100)]
    assert group_reads(local) == [[0], [1]]


def test_what_cannot_be_read_arrives_as_its_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    wanted = [
        Place("x", str(tmp_path / "a"), 0, 4),
        Place("y", str(tmp_path / "a"), 8, 4),
        Place("z", str(tmp_path / "gone"), 0, 4),
        Place(str(tmp_path / "gone.jpg")),
    ]
    found = read_each(wanted, lambda _, data: data, limits=DEFAULT_LIMITS)
    assert found[0] == b"0123"
    assert isinstance(found[1], ImageDecodeError)
    assert "ends before the image 'y'" in str(found[1])
    assert [isinstance(error, NotFoundError) for error in found[2:]] == [True, True]


def test_an_error_of_the_caller_ends_the_reading(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")

    def fail(position: int, _: bytes | Exception) -> None:
        if position == 3:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        read_each(
            [Place("x", str(tmp_path / "a"), 0, 4)] * 1_000, fail, threads=4, limits=DEFAULT_LIMITS
        )


def test_files_that_are_kept_open_are_few(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / str(number)).write_bytes(b"0123")
        read_place(Place("x", str(tmp_path / str(number)), 0, 4))
    opened = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    assert sum(str(tmp_path) in name for name in opened) <= places.MAX_OPEN


@pytest.mark.parametrize("where", ["disk", "container", "bucket"])
def test_what_is_larger_than_the_limit_is_not_read(
    tmp_path: Path, request: pytest.FixtureRequest, where: str
) -> None:
    """A slide of some gigabytes among the images once took the memory of a task."""
    with (tmp_path / "slide.tif").open("wb") as file:
        file.truncate(8 << 30)
    place = Place(str(tmp_path / "slide.tif"))
    limits = ImageLimits(max_bytes=1000)
    if where == "container":
        place = Place("slide.tif", str(tmp_path / "slide.tif"), 0, 8 << 30)
    elif where == "bucket":
        server: S3Server = request.getfixturevalue("s3_server")
        bucket = server.make_bucket(f"b-{uuid4().hex[:12]}")
        open_store(bucket).write("slide.tif", bytes(1001))
        place = Place(f"{bucket}/slide.tif")
    tracemalloc.start()  # unlike the memory of the process, which others may have let grow
    try:
        (found,) = read_each([place], lambda _, data: data, limits=limits)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(found, ImageTooLargeError)
    assert "more than the limit of 1,000" in str(found)
    assert peak < 200 << 20


def test_a_path_with_a_null_character_is_that_images_fault_alone() -> None:
    (found,) = read_each([Place("/a\0b.jpg")], lambda _, data: data, limits=DEFAULT_LIMITS)
    assert isinstance(found, StorageError)
