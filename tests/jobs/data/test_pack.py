"""Packing: what is written, that it is read as the source would be, and what goes wrong."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from cluster.session import Session
from jobs.data import pack_plan, pack_shards, packing
from jobs.data.config import DataConfig
from jobs.data.index import Index, build_index
from jobs.data.pack import main
from jobs.data.pack_plan import MIB, PackOptions, Plan, cut
from jobs.data.packing import Packed, run_packing
from jobs.data.shrink import shrink
from jobs.data.streams import IndexedImages, StreamOptions
from jobs.lease import acquire
from models.decoders import DEFAULT_LIMITS, read_size
from models.errors import ConfigError, DataError, StorageError
from models.preprocess import PreprocessSpec
from models.storage import open_store
from tests.conftest import S3Server
from tests.jobs.data.images import BROKEN, class_files, jpeg, write
from tests.jobs.data.workers import kill_one_task

SPEC = PreprocessSpec(height=16, width=16)
SHARD = 64 << 10


def pack(origin: Path | str, dest: Path | str, **settings: Any) -> Packed:
    """Pack with small shards."""
    packing = {"shard_bytes": SHARD, "uri": str(dest)}
    packing |= {
        name: settings.pop(name)
        for name in ("max_side", "seed", "overwrite", "shard_bytes")
        if name in settings
    }
    config = DataConfig(uri=str(origin), **settings)
    return run_packing(config, PackOptions(**packing), Console(file=io.StringIO()))  # type: ignore[arg-type]


def packed_index(dest: Path | str) -> Index:
    return build_index(DataConfig(source="packed", uri=str(dest)), SPEC)


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 200 images with splits of its own, some 250 kB, and two broken ones."""
    root = tmp_path_factory.mktemp("pack")
    write(root / "train", class_files({"bad": 40, "ok": 100}))
    write(root / "test", class_files({"bad": 20, "ok": 40}, start=1_000))
    write(root / "train" / "ok", {name: BROKEN[name] for name in ("text.jpg", "truncated.jpg")})
    return root


@pytest.fixture(scope="module")
def packed(ray_session: Session, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("packed")
    pack(folder, dest)
    return dest


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


def pack_command(folder: Path, dest: Path) -> list[str]:
    """Return the command that packs with the smallest shards."""
    return [
        *(sys.executable, "-m", "jobs.data.pack", str(folder), str(dest)),
        *("--shard-mib", "1"),
    ]


def killed_pack(
    folder: Path, dest: Path, environment: dict[str, str], chance: random.Random
) -> int:
    """Pack in processes that are killed soon after some more shards are there, until one gets done;
    return the kills.
    """
    command = pack_command(folder, dest)
    kills = 0
    while True:
        before, more = len(list(dest.glob("*.parquet"))), chance.randint(0, 3)
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
        )
        while process.poll() is None and len(list(dest.glob("*.parquet"))) < before + more:
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, 0.1) if more else chance.uniform(1.0, 5.0))
        if kills == 4 or process.poll() is not None:
            _, errors = process.communicate()
            assert process.returncode == 0, errors.decode()
            return kills
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        kills += 1


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 240 larger images, some 9 MB."""
    root = tmp_path_factory.mktemp("photos")
    names = {number: "ok" if number % 3 else "bad" for number in range(240)}
    write(root, {f"{name}/{n:04}.jpg": jpeg(n, size=220) for n, name in names.items()})
    return root


@pytest.fixture(scope="module")
def photos_packed(
    ray_session: Session, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The digests of these images packed without a disturbance."""
    dest = tmp_path_factory.mktemp("photos-packed")
    pack(photos, dest, shard_bytes=MIB)
    return digests(dest)


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_packing_ends_with_the_same_bytes(
    photos: Path,
    photos_packed: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    seed = time.time_ns()
    chance = random.Random(seed)
    kills = killed_pack(photos, tmp_path, environment, chance)
    with capsys.disabled():
        print(f"\n{kills} kills of jobs.data.pack (seed {seed}), then the same bytes")
    assert kills
    assert digests(tmp_path) == photos_packed


@pytest.mark.ray
@pytest.mark.slow
def test_killed_workers_of_ray_do_not_change_the_bytes(
    ray_session: Session,
    photos: Path,
    photos_packed: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    process = subprocess.Popen(
        pack_command(photos, tmp_path), stdout=subprocess.DEVNULL, env=environment
    )
    kills = 0
    while process.poll() is None:
        time.sleep(0.1)
        if kills < 4:
            kills += kill_one_task(ray_session)
    with capsys.disabled():
        print(f"\n{kills} workers of jobs.data.pack killed, then the same bytes")
    assert kills
    assert process.returncode == 0
    assert digests(tmp_path) == photos_packed


@pytest.mark.ray
def test_two_packings_of_one_destination_do_not_mix(
    ray_session: Session, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / ".pack").mkdir()
    lease = acquire(open_store(tmp_path / ".pack"), "DEST")
    try:
        with pytest.raises(ConfigError, match=r"another run .* is writing .* another DEST"):
            pack(folder, tmp_path)
    finally:
        lease.release(forget=True)


@pytest.mark.ray
def test_a_destination_that_is_taken_is_refused(
    ray_session: Session, packed: Path, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="holds a packed set already"):
        pack(folder, packed, seed=7)
    (tmp_path / "mine.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"is not empty: it holds 'mine.txt'"):
            pack(folder, tmp_path, overwrite=overwrite)
    assert (tmp_path / "mine.txt").read_text() == "precious"
    with pytest.raises(ConfigError, match="lies in the source"):
        pack(folder, folder / "packed")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to"):
        pack(folder, tmp_path / "file")


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
def test_overwriting_removes_nothing_before_the_source_was_read(
    ray_session: Session, folder: Path, packed: Path, tmp_path: Path
) -> None:
    for path in packed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match=r"data.drop names the label 'okk'"):
        pack(folder, tmp_path, overwrite=True, drop=["okk"])
    assert digests(tmp_path) == digests(packed)


@pytest.mark.ray
def test_overwriting_touches_no_parquet_of_others(
    ray_session: Session, folder: Path, tmp_path: Path
) -> None:
    for name in ("part-00000-4f2a.snappy.parquet", "part-00001.parquet", "index.arrow"):
        (tmp_path / name).write_text("precious")
    before = digests(tmp_path)
    with pytest.raises(ConfigError, match="is not empty"):
        pack(folder, tmp_path, overwrite=True)
    assert digests(tmp_path) == before
    (tmp_path / "below" / "cells").mkdir(parents=True)
    with pytest.raises(ConfigError, match="it holds 'cells'"):
        pack(folder, tmp_path / "below")
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(ConfigError, match="lies in the source"):
        pack(folder, tmp_path / "link" / "x")


@pytest.mark.ray
def test_images_that_could_not_be_read_are_tried_again_when_they_are_repaired(
    ray_session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, dest = tmp_path / "source", tmp_path / "dest"
    files = class_files({"bad": 40, "ok": 40})
    write(source, files)
    planned = pack_plan.make_plan

    def plan_and_break(*arguments: Any) -> Plan:
        plan = planned(*arguments)
        for number in range(20):
            (source / "ok" / f"{number:04}.jpg").unlink()
        return plan

    with monkeypatch.context() as patch:
        patch.setattr(packing, "make_plan", plan_and_break)
        with pytest.raises(DataError, match="repair or remove them, or raise the limit"):
            pack(source, dest)
    with pytest.raises(DataError, match=r"25.0%"):
        pack(source, dest)
    assert pack(source, dest, max_broken_share=0.5).num_images == 60
    write(source, files)
    assert pack(source, tmp_path / "whole").num_images == 80


@pytest.mark.ray
def test_a_shard_of_another_run_does_not_pass(
    ray_session: Session, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = pack_shards.write_shards

    def write_and_mix(*arguments: Any) -> int:
        count = written(*arguments)
        path = tmp_path / ".pack" / "part-00001.parquet.json"
        path.write_text(path.read_text().replace('"fingerprint": "', '"fingerprint": "x'))
        return count

    with monkeypatch.context() as patch:
        patch.setattr(packing, "write_shards", write_and_mix)
        with pytest.raises(StorageError, match=r"part-00001.parquet was written by another run"):
            pack(folder, tmp_path)
    assert pack(folder, tmp_path).num_images == 200


@pytest.mark.ray
def test_notes_of_a_run_that_was_killed_at_its_very_end_go(
    ray_session: Session,
    folder: Path,
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    committed = packing._commit

    def commit_and_die(*arguments: Any) -> Any:
        patch.setattr(packing, "_clear_work", interrupt)
        return committed(*arguments)

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(packing, "_commit", commit_and_die)
        with pytest.raises(KeyboardInterrupt):
            pack(folder, tmp_path)
    assert pack(folder, tmp_path).is_finished_before
    assert digests(tmp_path) == digests(packed)


@pytest.mark.ray
def test_a_manifest_that_changed_is_another_set(ray_session: Session, tmp_path: Path) -> None:
    write(tmp_path, class_files({"bad": 20, "ok": 20}))
    lines = ["path,label", *(f"{name},{name[:2]}" for name in class_files({"bad": 20, "ok": 20}))]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    pack(tmp_path / "list.csv", tmp_path / "out", source="manifest")
    (tmp_path / "list.csv").write_text("\n".join(lines[:-1]))
    with pytest.raises(ConfigError, match="with other settings"):
        pack(tmp_path / "list.csv", tmp_path / "out", source="manifest")


@pytest.mark.ray
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda dest: (dest / "part-00001.parquet").unlink(), "part-00001.parquet is missing"),
        (
            lambda dest: os.truncate(dest / "part-00001.parquet", 999),
            "has 999 bytes; pack.json says",
        ),
        (lambda dest: (dest / "pack.json").unlink(), "has an index.arrow but no pack.json"),
        (lambda dest: (dest / "pack.json").write_text("{}"), "has the format None"),
        (lambda dest: (dest / "pack.json").write_text('{"a'), "pack.json is damaged"),
        (lambda dest: (dest / "index.arrow").write_text("?"), "index.arrow is damaged"),
    ],
)
def test_a_set_that_is_not_whole_is_no_packed_set(
    ray_session: Session, packed: Path, tmp_path: Path, damage: Any, told: str
) -> None:
    for path in packed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damage(tmp_path)
    with pytest.raises(DataError, match=told):
        packed_index(tmp_path)


@pytest.mark.ray
def test_a_source_without_a_set_says_so(ray_session: Session, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no packed set"):
        packed_index(tmp_path)


@pytest.mark.ray
def test_a_shard_replaced_under_a_running_training_breaks_images_not_the_run(
    ray_session: Session, packed: Path, tmp_path: Path
) -> None:
    for path in packed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    images = IndexedImages(packed_index(tmp_path), SPEC, StreamOptions(max_broken_share=1))
    os.truncate(tmp_path / "part-00001.parquet", 20_000)
    seen = sum(len(batch) for batch in images.batches("train", batch_size=8, shuffle=True))
    assert images.broken
    assert "ends before the image" in images.broken[0].reason
    assert seen + len(images.broken) == len(images.order("train", batch_size=8, shuffle=True))


@pytest.mark.ray
def test_an_image_that_changes_meanwhile_is_left_out(
    ray_session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, dest = tmp_path / "source", tmp_path / "dest"
    write(source, class_files({"bad": 40, "ok": 40}))
    planned = pack_plan.make_plan

    def plan_and_change(*arguments: Any) -> Plan:
        plan = planned(*arguments)
        (source / "ok" / "0003.jpg").write_bytes(jpeg(77))
        (source / "ok" / "0004.jpg").unlink()
        return plan

    monkeypatch.setattr(packing, "make_plan", plan_and_change)
    packed = pack(source, dest)
    assert packed.num_images == 78
    reasons = [json.loads(line)["reason"] for line in (dest / "quarantine.jsonl").open()]
    assert any("changed while" in reason for reason in reasons)
    assert any("no such" in reason for reason in reasons)


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


@pytest.mark.ray
def test_a_missing_bucket_ends_the_run_readably(
    ray_session: Session, s3_server: S3Server, folder: Path
) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        pack(folder, "s3://there-is-no-such-bucket/x")


@pytest.mark.ray
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(
    ray_session: Session, folder: Path, packed: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "disk"
    dest.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(dest)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk here: {mounted.stderr.decode().strip()}")
    try:
        with pytest.raises(StorageError, match="is full"):
            pack(folder, dest)
        assert not (dest / "pack.json").exists()
        with pytest.raises(DataError, match="was not finished"):
            packed_index(dest)
        subprocess.run(["mount", "-o", "remount,size=4m", str(dest)], check=True)
        pack(folder, dest)
        assert digests(dest) == digests(packed)
    finally:
        subprocess.run(["umount", str(dest)], check=True)


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
        main([str(tmp_path), str(tmp_path / "x"), "sorce=manifest"])
    assert ended.value.code == 1
