"""Packed sets and tar files as sources of a scoring run."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.score.items import Item, open_source
from jobs.score.reading import load
from models.errors import DataError
from models.storage import open_store
from tests.conftest import S3Server
from tests.jobs.data.images import class_files, jpeg, write
from tests.jobs.score.containers import tar_bytes, write_packed, write_tars

IMAGES = class_files({"good": 7, "dented": 6})


def items_of(uri: object, *, truth: bool = False) -> list[Item]:
    """Return the images of a source."""
    label_column = "label" if truth else None
    source = open_source(str(uri), path_column="path", label_column=label_column)
    found = list(source.items())
    assert source.count() in (len(found), None)
    assert len({item.key for item in found}) == len(found)
    return found


def data_of(items: list[Item]) -> list[bytes]:
    """Read them."""
    loaded = [load(item, 1 << 20) for item in items]
    assert [each.failure for each in loaded] == [None] * len(items)
    return [each.data for each in loaded]


@pytest.mark.parametrize("truth", [True, False])
def test_a_packed_set_gives_its_images_in_the_order_of_its_index(
    tmp_path: Path, truth: bool
) -> None:
    write_packed(tmp_path / "packed", IMAGES)
    found = items_of(tmp_path / "packed", truth=truth)
    assert data_of(found) == list(IMAGES.values())
    assert [item.shown for item in found] == list(IMAGES)
    labels = [name.partition("/")[0] if truth else None for name in IMAGES]
    assert [item.truth for item in found] == labels


def test_a_packed_set_that_was_packed_anew_is_another_source(tmp_path: Path) -> None:
    write_packed(tmp_path / "one", IMAGES)
    write_packed(tmp_path / "two", dict(reversed(IMAGES.items())))
    one, two = (
        open_source(str(tmp_path / name), path_column="path", label_column=None).fingerprint
        for name in ("one", "two")
    )
    assert one != two


def test_a_packed_set_without_a_shard_is_refused(tmp_path: Path) -> None:
    write_packed(tmp_path / "packed", IMAGES)
    (tmp_path / "packed" / "part-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"part-00001.parquet is missing"):
        items_of(tmp_path / "packed")


def test_tar_files_give_all_their_images_labelled_or_not(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars", IMAGES)
    found = items_of(tmp_path / "tars", truth=True)
    assert data_of(found) == list(IMAGES.values())
    assert found[0].shown == f"{tmp_path}/tars/000.tar/good-0000.jpg"
    labels = [name.partition("/")[0] for name in IMAGES]
    expected = [label if n % 7 % 3 < 2 else None for n, label in enumerate(labels)]
    assert [item.truth for item in found] == expected
    assert [item.truth for item in items_of(tmp_path / "tars" / "001.tar")] == [None] * 6


def test_a_tar_file_in_a_bucket_is_read_by_ranges(s3_server: S3Server, tmp_path: Path) -> None:
    write_tars(tmp_path, IMAGES)
    store = open_store(s3_server.make_bucket("score-tars"))
    write(store, {f"shards/{path.name}": path.read_bytes() for path in tmp_path.iterdir()})
    assert data_of(items_of(f"{store.uri}/shards")) == list(IMAGES.values())


def test_hidden_members_and_names_that_come_twice(tmp_path: Path) -> None:
    members = {"./a/1.jpg": jpeg(1), ".trash/2.jpg": jpeg(2), "a/readme.md": b"x"}
    end = 512 + -(-len(jpeg(3)) // 512) * 512  # of the first member
    twice = tar_bytes({"b.jpg": jpeg(3)})[:end] + tar_bytes({"b.jpg": jpeg(4)})
    (tmp_path / "1.tar").write_bytes(tar_bytes(members))
    (tmp_path / "2.tar").write_bytes(twice)
    found = items_of(tmp_path)
    assert [Path(item.shown).name for item in found] == ["1.jpg", "b.jpg", "b.jpg"]
    assert data_of(found) == [jpeg(1), jpeg(3), jpeg(4)]


@pytest.mark.parametrize("cut", [0.5, 0.97])
def test_a_tar_file_that_was_cut_short_is_a_row_beside_what_it_still_holds(
    tmp_path: Path, cut: float
) -> None:
    whole = tar_bytes({f"{n}.jpg": jpeg(n, size=64) for n in range(20)})
    whole = whole[: whole.rindex(jpeg(19, size=64)[-64:]) + 512]
    (tmp_path / "1.tar").write_bytes(whole[: int(len(whole) * cut)])
    found = items_of(tmp_path)
    *sound, tar = found
    assert tar.shown == f"{tmp_path}/1.tar"
    loaded = load(tar, 1 << 20)
    assert loaded.failure is not None
    assert loaded.failure.code == "data"
    assert "what follows in it is lost" in loaded.failure.error
    assert len(data_of(sound[:-1])) == len(sound) - 1 > 8
    last = load(sound[-1], 1 << 20)
    assert last.failure is None or last.failure.code == "image_decode"


def test_a_folder_of_images_with_a_tar_file_among_them_is_one_of_images(tmp_path: Path) -> None:
    write(tmp_path, {**IMAGES, "backup.tar": tar_bytes(IMAGES)})
    assert len(items_of(tmp_path)) == len(IMAGES)


def test_a_box_that_is_none_is_the_trouble_of_its_image_only(tmp_path: Path) -> None:
    members = {f"{n}.jpg": jpeg(n, size=64) for n in range(3)}
    members |= {"0.json": b'{"box": [8, 8, 40, 40]}', "1.json": b'{"box": "left half"}'}
    (tmp_path / "1.tar").write_bytes(tar_bytes(dict(sorted(members.items()))))
    found = items_of(tmp_path)
    assert [item.box for item in found] == [(8, 8, 40, 40), None, None]
    failures = [load(item, 1 << 20).failure for item in found]
    assert [failure and failure.code for failure in failures] == [None, "data", None]
    assert failures[1] is not None
    assert "'box' says 'left half'; expected four numbers" in failures[1].error


def test_a_folder_that_is_named_like_a_tar_file_is_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "images.tar", IMAGES)
    assert [item.shown for item in items_of(tmp_path / "images.tar", truth=True)] == [
        f"{tmp_path}/images.tar/{name}" for name in sorted(IMAGES)
    ]
    write_tars(tmp_path / "shards.TAR", IMAGES)
    assert len(items_of(tmp_path / "shards.TAR")) == len(IMAGES)


def test_compressed_tar_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "1.tar").write_bytes(tar_bytes(IMAGES))
    (tmp_path / "2.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match="is compressed"):
        items_of(tmp_path)


def test_a_file_that_is_no_tar_file_or_cannot_be_opened_is_a_row(tmp_path: Path) -> None:
    write(tmp_path, {"0.tar": tar_bytes(IMAGES), "1.tar": b""})
    *sound, empty = items_of(tmp_path)
    assert len(sound) == len(IMAGES)
    assert "damaged or cut short: empty file" in empty.problem
    (tmp_path / "1.tar").unlink()
    source = open_source(str(tmp_path), path_column="path", label_column=None)
    (tmp_path / "0.tar").unlink()
    (gone,) = source.items()
    assert gone.problem.startswith(f"cannot read {tmp_path}/0.tar: No such file")


def test_the_truth_is_what_training_calls_the_label(tmp_path: Path) -> None:
    said = [b'{"label": true}', b'{"label": " ok "}', b'{"label": 7}', b'{"label": ""}']
    members = {f"{n}.jpg": jpeg(n) for n in range(4)} | {f"{n}.json": t for n, t in enumerate(said)}
    (tmp_path / "1.tar").write_bytes(tar_bytes(dict(sorted(members.items()))))
    source = open_source(str(tmp_path), path_column="path", label_column="label")
    assert [item.truth for item in source.items()] == ["true", "ok", "7", None]


def test_other_images_at_the_same_places_of_a_tar_file_are_others(tmp_path: Path) -> None:
    (tmp_path / "1.tar").write_bytes(tar_bytes({"mon1.jpg": jpeg(1), "mon2.jpg": jpeg(2)}))
    before = {item.key for item in items_of(tmp_path)}
    assert {item.key for item in items_of(tmp_path)} == before
    (tmp_path / "1.tar").write_bytes(tar_bytes({"tue1.jpg": jpeg(1), "tue2.jpg": jpeg(2)}))
    assert not {item.key for item in items_of(tmp_path)} & before
