"""Tar files as a source."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.session import Session
from jobs.data.config import DataConfig
from jobs.data.index import Index, build_index
from jobs.data.sources import Listing, list_source
from jobs.data.split import split_of_name
from jobs.data.streams import IndexedImages
from jobs.data.webdataset import ShardReader
from models.errors import DataError
from models.preprocess import PreprocessSpec, prepare
from models.storage import Entry, open_store
from tests.conftest import S3Server
from tests.jobs.data.images import jpeg, write

SPEC = PreprocessSpec(height=16, width=16)
pytestmark = pytest.mark.ray


def tar(members: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a tar file with these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def samples(start: int, count: int) -> Iterable[tuple[str, bytes]]:
    """Yield images with a label beside each, good and bad in turns."""
    for number in range(start, start + count):
        yield f"{number:04}.jpg", jpeg(number)
        yield f"{number:04}.cls", b"good\n" if number % 2 else b"bad\n"


def listing_of(uri: Path | str, **settings: Any) -> Listing:
    return list_source(DataConfig(source="webdataset", uri=str(uri), **settings))


def index_of(uri: Path | str, **settings: Any) -> Index:
    return build_index(DataConfig(source="webdataset", uri=str(uri), **settings), SPEC)


def test_images_of_tar_files_are_listed_with_label_and_place(
    ray_session: Session, tmp_path: Path
) -> None:
    write(tmp_path, {"b/1.tar": tar(samples(20, 5)), "a/0.tar": tar(samples(0, 20))})
    table = listing_of(tmp_path).table
    assert table.num_rows == 25
    assert set(table["label"].to_pylist()) == {"good", "bad"}
    for row in table.to_pylist():
        data = Path(row["container"]).read_bytes()[row["offset"] : row["offset"] + row["size"]]
        number = int(Path(row["path"]).stem)
        assert data == jpeg(number)
        assert row["reason"] == ""
        assert (row["width"], row["height"]) == (24, 24)


def test_batches_hold_what_prepare_makes_of_the_members(
    ray_session: Session, tmp_path: Path
) -> None:
    write(tmp_path, {"train-0.tar": tar(samples(0, 30)), "test-0.tar": tar(samples(30, 10))})
    images = IndexedImages(index_of(tmp_path), SPEC)
    paths = images.paths("train")
    for batch in images.batches("train", batch_size=8, shuffle=True):
        for picture, number in zip(batch.images, batch.ids.tolist(), strict=True):
            expected = prepare(jpeg(int(Path(paths[number]).stem)), SPEC)
            np.testing.assert_array_equal(picture, expected)


def test_a_label_stands_in_cls_or_txt_or_json(ray_session: Session, tmp_path: Path) -> None:
    about = {"label": "bad", "group": 7, "weight": 2.5, "box": [0, 0, 10, 12], "split": "val"}
    members = [
        ("a/1.jpg", jpeg(1)),
        ("a/1.txt", b"good"),
        ("b/1.jpg", jpeg(2)),
        ("b/1.json", json.dumps(about).encode()),
        ("b/2.png.jpg", jpeg(3)),
        ("b/2.cls", b"0"),
    ]
    write(tmp_path, {"x.tar": tar(members)})
    rows = {
        row["path"].removeprefix(f"{tmp_path}/x.tar/"): row
        for row in listing_of(tmp_path / "x.tar").table.to_pylist()
    }
    assert {name: row["label"] for name, row in rows.items()} == {
        "a/1.jpg": "good",
        "b/1.jpg": "bad",
        "b/2.png.jpg": "0",
    }
    told = rows["b/1.jpg"]
    assert (told["group"], told["weight"], told["box"], told["split"]) == (
        "7",
        2.5,
        [0, 0, 10, 12],
        "validation",
    )


@pytest.mark.parametrize(
    ("key", "split"),
    [
        ("train-00001.tar", "train"),
        ("imagenet1k-validation-07.tar", "validation"),
        ("train/val/0.tar", "validation"),
        ("trainer-0.tar", None),
    ],
)
def test_a_word_of_the_path_gives_the_split(key: str, split: str | None) -> None:
    assert split_of_name(key) == split


@pytest.mark.parametrize("cut", [0.3, 0.5, 0.77, 0.9])
def test_a_tar_that_was_cut_short_gives_what_is_before_the_cut(
    ray_session: Session, tmp_path: Path, cut: float
) -> None:
    whole = tar(samples(0, 40))
    write(tmp_path, {"a.tar": whole[: int(len(whole) * cut)], "b.tar": tar(samples(100, 40))})
    index = index_of(tmp_path, max_broken_share=0.5)
    assert [broken.path for broken in index.quarantine] == [f"{tmp_path}/a.tar"]
    assert "cut short" in index.quarantine[0].reason
    from_a = [path for path in index.table["path"].to_pylist() if "/a.tar/" in path]
    assert from_a == [f"{tmp_path}/a.tar/{number:04}.jpg" for number in range(len(from_a))]
    # Of an image of three blocks and its label of two, at most the one at the cut is lost.
    assert len(from_a) >= int(40 * cut) - 2


def test_what_is_lost_with_the_end_of_a_tar_counts_as_broken(
    ray_session: Session, tmp_path: Path
) -> None:
    """Nine of ten tar files, cut after their first images, once were nine broken images."""
    for number in range(10):
        whole = tar(samples(100 * number, 40))
        write(tmp_path, {f"{number}.tar": whole if number == 7 else whole[: len(whole) // 8]})
    with pytest.raises(DataError, match=r"of 400 images .* lost in files that end too early"):
        index_of(tmp_path)
    assert index_of(tmp_path, max_broken_share=0.95).num_lost > 300


def test_a_tar_cut_between_two_members_is_no_whole_one(
    ray_session: Session, tmp_path: Path
) -> None:
    """Python's tarfile takes such an end for a sound one."""
    with tarfile.open(fileobj=io.BytesIO(whole := tar(samples(0, 10)))) as archive:
        end = archive.getmembers()[10].offset
    write(tmp_path, {"a.tar": whole[:end], "b.tar": tar(samples(100, 40))})
    index = index_of(tmp_path, max_broken_share=0.5)
    assert [broken.path for broken in index.quarantine] == [f"{tmp_path}/a.tar"]
    assert index.num_images() == 45


def test_rubbish_in_the_middle_of_a_tar_is_told(ray_session: Session, tmp_path: Path) -> None:
    whole = bytearray(tar(samples(0, 20)))
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        header = archive.getmembers()[20].offset
    whole[header : header + 512] = b"rubbish!" * 64
    write(tmp_path, {"a.tar": bytes(whole), "b.tar": tar(samples(100, 40))})
    index = index_of(tmp_path, max_broken_share=0.5)
    assert "damaged at byte" in index.quarantine[0].reason
    assert index.num_images() == 50


def test_broken_images_in_a_tar_are_left_out_one_by_one(
    ray_session: Session, tmp_path: Path
) -> None:
    members = [*samples(0, 40), ("x.jpg", b"no image"), ("x.cls", b"good"), ("y.jpg", b"")]
    write(tmp_path, {"a.tar": tar([*members, ("y.cls", b"bad")])})
    index = index_of(tmp_path, max_broken_share=0.5)
    assert [Path(broken.path).name for broken in index.quarantine] == ["x.jpg", "y.jpg"]
    assert index.num_images() == 40


def test_images_without_a_label_are_left_out_and_counted(
    ray_session: Session, tmp_path: Path
) -> None:
    write(tmp_path, {"a.tar": tar([*samples(0, 40), ("lost.jpg", jpeg(99)), ("note.md", b"?")])})
    index = index_of(tmp_path)
    assert any("1 images have no label" in warning for warning in index.warnings)
    assert index.num_images() == 40


def test_of_several_images_of_a_sample_the_plainly_named_one_is_taken(
    ray_session: Session, tmp_path: Path
) -> None:
    """Depth maps sort before pictures."""
    members = [("1.cls", b"a"), ("1.depth.png", jpeg(9)), ("1.jpg", jpeg(1)), ("1.mask.png", b"")]
    two = [("2.cls", b"b"), ("2.jpg", jpeg(2)), ("2.png", jpeg(3))]
    write(tmp_path, {"a.tar": tar([*members, *two])})
    listing = listing_of(tmp_path)
    names = [Path(path).name for path in listing.table["path"].to_pylist()]
    assert names == ["1.jpg", "2.jpg"]
    assert listing.ignored == 3
    assert ["a.tar/2.png" in warning for warning in listing.warnings] == [True]


def test_a_set_without_any_label_is_refused(ray_session: Session, tmp_path: Path) -> None:
    write(tmp_path, {"a.tar": tar([("1.jpg", jpeg(1)), ("1.json", b'{"class": "good"}')])})
    with pytest.raises(DataError, match=r"no image of .* has a label.*data.label_column"):
        listing_of(tmp_path)
    assert listing_of(tmp_path, label_column="class").table["label"].to_pylist() == ["good"]


def test_json_that_is_none_is_refused_by_name(ray_session: Session, tmp_path: Path) -> None:
    write(tmp_path, {"a.tar": tar([("1.jpg", jpeg(1)), ("1.json", b"{")])})
    with pytest.raises(DataError, match=r"a.tar/1.json is not JSON"):
        listing_of(tmp_path)


def test_compressed_tars_and_folders_without_tars_are_refused(
    ray_session: Session, tmp_path: Path
) -> None:
    write(tmp_path, {"a.tar.gz": b"", "b/readme.txt": b""})
    with pytest.raises(DataError, match=r"a.tar.gz is compressed"):
        listing_of(tmp_path)
    with pytest.raises(DataError, match=r"holds no .tar file"):
        listing_of(tmp_path / "b")


def test_tars_in_a_bucket_are_read_as_those_on_a_disk(
    ray_session: Session, s3_server: S3Server, tmp_path: Path
) -> None:
    bucket = s3_server.make_bucket("tars")
    files = {"train-0.tar": tar(samples(0, 40)), "test-0.tar": tar(samples(40, 10))}
    write(open_store(bucket), files)
    write(tmp_path, files)
    remote, local = index_of(bucket), index_of(tmp_path)
    for column in ("offset", "size", "label", "split", "sha256"):
        assert remote.table[column].to_pylist() == local.table[column].to_pylist()
    images = IndexedImages(remote, SPEC)
    seen = [number for batch in images.batches("test", batch_size=4) for number in batch.ids]
    assert seen == list(range(10))
    shuffled = [
        number
        for batch in images.batches("train", batch_size=8, shuffle=True)
        for number in batch.ids.tolist()
    ]
    assert len(set(shuffled)) == len(shuffled) == 32
    assert not images.broken


@pytest.mark.parametrize("content", [b"", b"<html>404</html>" * 100])
def test_a_file_that_is_no_tar_file_is_broken_and_the_others_are_read(
    ray_session: Session, tmp_path: Path, content: bytes
) -> None:
    write(tmp_path, {"0.tar": tar(samples(0, 20)), "1.tar": content})
    found = listing_of(tmp_path)
    assert found.table.num_rows == 20
    (broken,) = found.broken
    assert broken.path == f"{tmp_path}/1.tar"
    assert "damaged or cut short at byte 0" in broken.reason


def test_a_tar_file_that_cannot_be_opened_is_broken(ray_session: Session, tmp_path: Path) -> None:
    write(tmp_path, {"0.tar": tar(samples(0, 20))})
    (tmp_path / "1.tar").symlink_to(tmp_path / "1.tar")  # a loop: root may read any other file
    config = DataConfig(source="webdataset", uri=str(tmp_path))
    read = ShardReader(Entry(f"{tmp_path}/1.tar", 10), config)
    assert read.read().num_rows == 0
    assert f"cannot read {tmp_path}/1.tar: Too many levels" in read.problem
