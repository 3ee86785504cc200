"""What packing writes, and that it is read as the source would be."""

from __future__ import annotations

import hashlib
import io
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cluster.session import Session
from jobs.data import pack_shards
from jobs.data.config import DataConfig
from jobs.data.index import build_index
from jobs.data.pack import main
from jobs.data.pack_plan import MIB, PackOptions, cut
from jobs.data.packing import fingerprint_of
from jobs.data.shrink import shrink
from jobs.data.streams import IndexedImages, StreamOptions
from models.decoders import DEFAULT_LIMITS, read_size
from models.storage import open_store
from tests.conftest import S3Server
from tests.jobs.data.images import class_files, jpeg, write
from tests.jobs.data.packs import SPEC, digests, pack, packed_index


@pytest.mark.ray
def test_any_reader_of_parquet_reads_the_images(packed: Path, folder: Path) -> None:
    shards = sorted(packed.glob("*.parquet"))
    assert len(shards) >= 3
    table = pyarrow.parquet.read_table([str(path) for path in shards])
    assert table.num_rows == 200
    for row in table.to_pylist():
        data = (folder / row["path"]).read_bytes()
        assert row["image"] == data
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert row["size"] == len(data)
        assert (row["width"], row["height"]) == (24, 24)
        split, label, _ = row["path"].split("/")
        assert (row["split"] in (split, "validation"), row["label"]) == (True, label)


@pytest.mark.ray
def test_the_quarantine_lies_beside_the_shards(packed: Path, folder: Path) -> None:
    lines = [json.loads(line) for line in (packed / "quarantine.jsonl").read_text().splitlines()]
    assert [Path(line["path"]).name for line in lines] == ["text.jpg", "truncated.jpg"]
    assert "not an image" in lines[0]["reason"]
    about = json.loads((packed / "pack.json").read_text())
    assert (about["num_images"], about["num_quarantined"]) == (200, 2)
    assert not (packed / ".pack").exists()


@pytest.mark.ray
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_packed_set_streams_as_the_folder_it_was_packed_from(
    ray_session: Session, packed: Path, folder: Path, shuffle: bool
) -> None:
    loose = build_index(DataConfig(uri=str(folder)), SPEC)
    index = packed_index(packed)
    assert index.classes == loose.classes
    assert index.counts == loose.counts
    options = StreamOptions(images_per_task=32)
    for one, other in zip(
        IndexedImages(index, SPEC, options).batches("train", batch_size=16, shuffle=shuffle),
        IndexedImages(loose, SPEC, options).batches("train", batch_size=16, shuffle=shuffle),
        strict=True,
    ):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.images, other.images)


@pytest.mark.ray
def test_packing_again_gives_the_same_bytes_or_nothing_to_do(
    ray_session: Session, packed: Path, folder: Path, tmp_path: Path
) -> None:
    before = digests(packed)
    again = pack(folder, packed)
    assert again.num_before == len(list(packed.glob("*.parquet")))
    assert digests(packed) == before
    pack(folder, tmp_path)
    assert digests(tmp_path) == before


@pytest.mark.ray
def test_the_order_follows_the_seed(ray_session: Session, folder: Path, tmp_path: Path) -> None:
    first, second = pack(folder, tmp_path / "a", seed=1), pack(folder, tmp_path / "b", seed=2)
    assert first.digest != second.digest
    assert packed_index(tmp_path / "a").table["path"] == packed_index(tmp_path / "b").table["path"]


@pytest.mark.ray
def test_a_packed_set_keeps_its_splits_and_the_order_of_its_classes(
    ray_session: Session, tmp_path: Path
) -> None:
    write(tmp_path / "in", class_files({"bad": 30, "good": 30, "okay": 10}))
    rules = {"merge": {"good": ["okay"]}, "classes": ["good", "bad"]}
    shares = {"train": 0.8, "validation": 0.2, "test": 0.0}
    pack(tmp_path / "in", tmp_path / "out", split=shares, **rules)
    index = packed_index(tmp_path / "out")
    assert index.classes == ("good", "bad")
    assert [index.num_images(split) for split in ("train", "validation", "test")] == [56, 14, 0]


@pytest.mark.ray
def test_overwriting_replaces_a_set(ray_session: Session, folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path, shard_bytes=20_000)
    before = digests(tmp_path)
    pack(folder, tmp_path, overwrite=True)
    after = digests(tmp_path)
    assert len(after) < len(before)
    assert packed_index(tmp_path).num_images() == 200


@pytest.mark.ray
def test_large_images_are_shrunk_with_their_boxes(ray_session: Session, tmp_path: Path) -> None:
    files = {f"{number}.jpg": jpeg(number, size=64) for number in range(20)}
    write(tmp_path / "in", {**files, "small.jpg": jpeg(99, size=20)})
    lines = ["path,label,box,group,weight"]
    lines += [
        f"{number}.jpg,{'ab'[number % 2]},0 16 64 48,g{number // 4},2" for number in range(20)
    ]
    (tmp_path / "in" / "list.csv").write_text("\n".join([*lines, "small.jpg,a,,,"]))
    pack(tmp_path / "in" / "list.csv", tmp_path / "out", source="manifest", max_side=32)
    table = pyarrow.parquet.read_table(str(tmp_path / "out" / "part-00000.parquet"))
    for row in table.to_pylist():
        with Image.open(io.BytesIO(row["image"])) as image:
            assert image.size == (row["width"], row["height"])
        assert row["sha256"] == hashlib.sha256(row["image"]).hexdigest()
        if row["path"] == "small.jpg":
            assert row["image"] == jpeg(99, size=20)
            assert (row["box"], row["group"], row["weight"]) == (None, None, None)
        else:
            assert (row["width"], row["height"], row["weight"]) == (32, 32, 2.0)
            assert row["box"] == [0, 8, 32, 24]


@pytest.mark.ray
def test_buckets_hold_the_same_set_and_are_read_in_runs(
    ray_session: Session, s3_server: S3Server, packed: Path, folder: Path
) -> None:
    source, dest = s3_server.make_bucket("loose"), s3_server.make_bucket("packs")
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    write(open_store(source), files)
    pack(source, f"{dest}/set")
    for name, digest in digests(packed).items():
        if name.endswith(".parquet") or name == "index.arrow":
            data = open_store(f"{dest}/set").read(name)
            assert hashlib.sha256(data).hexdigest() == digest
    images = IndexedImages(packed_index(f"{dest}/set"), SPEC)
    order = images.order("train", batch_size=8, shuffle=True)
    assert len(set(order.tolist())) == len(order)
    full = IndexedImages(packed_index(packed), SPEC).order("train", batch_size=8, shuffle=True)
    assert order.tolist() != full.tolist()  # it shuffles runs
    seen = [
        row for batch in images.batches("train", batch_size=8, shuffle=True) for row in batch.ids
    ]
    assert seen == order.tolist()
    assert not images.broken


@given(st.tuples(st.integers(1, 3_000), st.integers(1, 3_000)), st.integers(16, 1_000), st.data())
def test_a_box_lies_in_its_image_however_that_was_shrunk(
    old: tuple[int, int], max_side: int, data: st.DataObject
) -> None:
    height, width = old
    scale = min(1.0, max_side / max(old))
    new = max(1, round(height * scale)), max(1, round(width * scale))
    left, right = sorted(
        data.draw(st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True))
    )
    top, bottom = sorted(
        data.draw(st.lists(st.integers(0, height), min_size=2, max_size=2, unique=True))
    )
    box = pack_shards._scaled([left, top, right, bottom], old, new)
    assert 0 <= box[0] < box[2] <= new[1]
    assert 0 <= box[1] < box[3] <= new[0]
    if (left, top, right, bottom) == (0, 0, width, height):
        assert box == [0, 0, new[1], new[0]]


def test_a_cut_gives_shards_of_about_the_size() -> None:
    sizes = np.random.default_rng(0).integers(1_000, 90_000, 5_000)
    for shard_bytes in (MIB, 5 * MIB):
        bounds = cut(sizes, shard_bytes)
        assert (bounds[0], bounds[-1]) == (0, 5_000)
        held = [sizes[start:end].sum() for start, end in pairwise(bounds)]
        assert max(held) <= shard_bytes + 90_000
        assert min(held[:-1]) >= shard_bytes - 90_000
    assert len(cut(np.full(10_000, 30_000), None)) - 1 >= 16
    assert len(cut(np.full(10, 30_000), None)) - 1 == 1
    # An image larger than a shard has one of its own.
    assert cut(np.array([10, 100, 10]), 50)[-1] == 3


def test_shrinking_keeps_what_is_small_or_deep_and_turns_what_lies() -> None:
    small = jpeg(1, size=30)
    assert shrink(small, 30, DEFAULT_LIMITS) is small
    assert read_size(shrink(jpeg(1, size=300), 100, DEFAULT_LIMITS)) == (100, 100)
    deep = io.BytesIO()
    Image.fromarray(np.arange(10_000, dtype=np.uint16).reshape(100, 100)).save(deep, "PNG")
    assert shrink(deep.getvalue(), 50, DEFAULT_LIMITS) == deep.getvalue()
    lying = io.BytesIO()
    photo = Image.new("RGB", (200, 100))
    exif = photo.getexif()
    exif[274] = 6
    photo.save(lying, "JPEG", exif=exif)
    assert read_size(shrink(lying.getvalue(), 100, DEFAULT_LIMITS)) == (100, 50)
    plain = io.BytesIO()
    Image.new("RGB", (90, 60)).save(plain, "PNG")
    assert read_size(shrink(plain.getvalue(), 30, DEFAULT_LIMITS)) == (20, 30)
    assert shrink(plain.getvalue(), 30, DEFAULT_LIMITS).startswith(b"\x89PNG")


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path), str(tmp_path / "x"), "--max-side", "0"])
    assert ended.value.code == 2
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path), str(tmp_path / "x"), "--seed", "-1"])
    assert ended.value.code == 2
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path), str(tmp_path / "x"), "--seed", "1", "sorce=manifest"])
    assert ended.value.code == 1


def test_what_only_says_how_a_source_is_read_is_no_other_set() -> None:
    options = PackOptions(uri="x")
    plain = fingerprint_of(DataConfig(uri="set"), options)
    settings = {"cache_gib": 2.0, "read_threads": 3, "images_per_task": 7, "shuffle": "runs"}
    assert fingerprint_of(DataConfig.model_validate({"uri": "set", **settings}), options) == plain
    assert fingerprint_of(DataConfig(uri="set", drop=["x"]), options) != plain
    # Only what differs from the default is in it, so that a new setting makes no other set.
    assert fingerprint_of(DataConfig(uri="set", max_image_bytes=32 << 20), options) == plain
