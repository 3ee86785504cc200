"""Packing that is killed, disturbed, refused, or short of room, and sets that are not whole."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pytest
import ray

from cluster.session import Session
from jobs.data import pack_plan, pack_shards, packing, shards
from jobs.data.pack_plan import MIB, Plan
from jobs.data.streams import IndexedImages, StreamOptions
from jobs.lease import acquire
from models.errors import ConfigError, DataError, StorageError
from models.storage import Store, open_store
from tests.conftest import S3Server
from tests.disks import enlarge, small_disk
from tests.jobs.data.images import class_files, jpeg, write
from tests.jobs.data.packs import SPEC, digests, pack, packed_index
from tests.outages import Outage
from tests.raylet import READER, kill_one


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
        # The first goes by shards, so that it is not done before some seconds have passed.
        before, more = len(list(dest.glob("*.parquet"))), chance.randint(0 if kills else 1, 3)
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
            kills += kill_one(ray_session, READER)
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
@pytest.mark.parametrize("again", [True, False])
def test_overwriting_that_is_cut_short_while_it_clears_goes_on(
    ray_session: Session,
    folder: Path,
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    again: bool,
) -> None:
    pack(folder, tmp_path, seed=7)
    remove, removed = Store.delete, list[str]()

    def remove_or_die(store: Store, key: str) -> None:
        if len(removed) == 2:
            raise StorageError("the bucket is gone")
        removed.append(key)
        remove(store, key)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete", remove_or_die)
        with pytest.raises(StorageError, match="is gone"):
            pack(folder, tmp_path, overwrite=True)
    assert removed[0] == "pack.json"
    pack(folder, tmp_path, overwrite=again)
    assert digests(tmp_path) == digests(packed)


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
def test_overwriting_a_set_with_files_of_others_beside_it_touches_neither(
    ray_session: Session, folder: Path, packed: Path, tmp_path: Path
) -> None:
    for path in packed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "part-00000-4f2a.snappy.parquet").write_text("precious")
    before = digests(tmp_path)
    with pytest.raises(ConfigError, match=r"it holds 'part-00000-4f2a.snappy.parquet'"):
        pack(folder, tmp_path, overwrite=True)
    assert digests(tmp_path) == before


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
        (
            lambda dest: (dest / "pack.json").write_text('{"format": "sightline.pack/1"}'),
            "it lacks classes, index, shards",
        ),
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
def test_a_missing_bucket_ends_the_run_readably(
    ray_session: Session, s3_server: S3Server, folder: Path
) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        pack(folder, "s3://there-is-no-such-bucket/x")


@pytest.mark.ray
@pytest.mark.slow
def test_a_bucket_that_answers_503_for_a_while_is_waited_for(
    ray_session: Session, s3_server: S3Server, packed: Path, folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Begun when the source was read: what follows in this process are notes, records, the set."""
    dest = s3_server.make_bucket("busy-pack")
    planned = pack_plan.make_plan
    with Outage.before(s3_server.endpoint) as outage:
        monkeypatch.setenv("AWS_ENDPOINT_URL", outage.endpoint)

        def plan_and_fail(*arguments: Any) -> Plan:
            plan = planned(*arguments)
            outage.ends = time.monotonic() + 8
            return plan

        monkeypatch.setattr(packing, "make_plan", plan_and_fail)
        assert pack(folder, dest).num_images == 200
        assert time.monotonic() > outage.ends
        assert outage.num_refused > 6
        store = open_store(dest)
        for name, digest in digests(packed).items():
            if name.endswith(".parquet"):
                assert hashlib.sha256(store.read(name)).hexdigest() == digest


@pytest.mark.ray
def test_a_shard_on_its_way_to_a_bucket_has_no_name_that_a_killed_process_would_leave(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left: list[int] = []
    upload = Store.upload

    def look_and_upload(self: Store, key: str, file: Path | BinaryIO) -> None:
        left.append(len(list(tmp_path.iterdir())))
        upload(self, key, file)

    monkeypatch.setattr(Store, "upload", look_and_upload)
    store = open_store(s3_server.make_bucket("nameless"))
    columns = pa.table(
        [pa.nulls(1, field.type) for field in shards.FIELDS], schema=pa.schema(shards.FIELDS)
    )
    size, digest = pack_shards._store_shard(store, "part-00000.parquet", columns, [b"image"])
    written = store.read("part-00000.parquet")
    assert (len(written), hashlib.sha256(written).hexdigest()) == (size, digest)
    assert left == [0]


@pytest.mark.ray
@pytest.mark.parametrize("size", ["24k", "160k", "308k", "316k", "328k"])
def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(
    ray_session: Session, folder: Path, packed: Path, tmp_path: Path, size: str
) -> None:
    # What finds no room is the first shard, a later one, its record, the index, the manifest.
    dest = tmp_path / "disk"
    with small_disk(dest, size):
        with pytest.raises(StorageError, match="is full"):
            pack(folder, dest)
        assert not (dest / "pack.json").exists()
        with pytest.raises(DataError, match="was not finished"):
            packed_index(dest)
        enlarge(dest, "4m")
        pack(folder, dest)
        assert digests(dest) == digests(packed)
