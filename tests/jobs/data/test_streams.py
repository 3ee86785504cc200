from __future__ import annotations

import hashlib
import os
import pickle
import random
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import ray

from cluster.session import Session
from jobs.data.assembling import assemble
from jobs.data.chunks import Columns, Pace, _call, run_chunks
from jobs.data.config import DataConfig
from jobs.data.index import Index, build_index
from jobs.data.slots import InSlot, SlotPool, room_for
from jobs.data.streams import Batch, IndexedImages, Order, StreamOptions
from models.errors import DataError
from models.preprocess import PreprocessSpec, prepare
from models.storage import Entry, Store, open_store
from tests.conftest import S3Server
from tests.jobs.data.images import class_files, jpeg, write
from tests.raylet import READER, kill_one

SPEC = PreprocessSpec(height=20, width=16)
NUM_TRAIN = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("streams")
    write(root / "train", class_files({"bad": 20, "ok": 80}))
    write(root / "validation", class_files({"bad": 5, "ok": 18}, start=1_000))
    write(root / "test", class_files({"bad": 3, "ok": 3}, start=2_000))
    return root


@pytest.fixture(scope="module")
def index(ray_session: Session, folder: Path) -> Index:
    return build_index(DataConfig(uri=str(folder)), SPEC)


@pytest.fixture(scope="module")
def images(index: Index) -> IndexedImages:
    return IndexedImages(index, SPEC, StreamOptions(images_per_task=16))


def seen(batches: Iterator[Batch]) -> list[int]:
    return [number for batch in batches for number in batch.ids.tolist()]


@pytest.mark.ray
def test_a_batch_holds_what_prepare_makes_of_its_files(images: IndexedImages) -> None:
    paths, labels = images.paths("train"), images.labels("train")
    batch = next(images.batches("train", batch_size=12, shuffle=True))
    assert batch.images.shape == (12, 20, 16, 3)
    assert [str(array.dtype) for array in (batch.images, batch.labels, batch.ids)] == [
        "uint8",
        "int64",
        "int64",
    ]
    for image, label, number in zip(batch.images, batch.labels, batch.ids, strict=True):
        path = Path(paths[number])
        assert (image == prepare(path.read_bytes(), SPEC)).all()
        assert images.classes[label] == path.parent.name
        assert label == labels[number]
    batch.images[0] = 0  # it is the caller's own, not a view of shared memory


@pytest.mark.ray
@pytest.mark.parametrize("batch_size", [1, 7, 23, 64])
def test_unshuffled_every_image_comes_once_in_order(images: IndexedImages, batch_size: int) -> None:
    batches = list(images.batches("validation", batch_size=batch_size))
    assert seen(iter(batches)) == list(range(23))
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    assert len(batches) == images.num_batches("validation", batch_size=batch_size)


@pytest.mark.ray
@pytest.mark.parametrize("world", [2, 3, 4])
def test_validation_shards_hold_every_image_exactly_once(images: IndexedImages, world: int) -> None:
    shares = [
        seen(images.batches("validation", batch_size=4, rank=rank, world=world))
        for rank in range(world)
    ]
    assert sorted(chain.from_iterable(shares)) == list(range(23))


@pytest.mark.ray
def test_an_epoch_repeats_exactly_and_another_differs(index: Index) -> None:
    def epoch(number: int, images_per_task: int) -> list[int]:
        options = StreamOptions(images_per_task=images_per_task)
        images = IndexedImages(index, SPEC, options)
        return seen(images.batches("train", batch_size=10, epoch=number, seed=3, shuffle=True))

    first = epoch(0, 16)
    assert sorted(first) == list(range(NUM_TRAIN))
    assert first == epoch(0, 100)
    assert first != epoch(1, 16)


@pytest.mark.ray
def test_training_shards_are_equal_and_leave_out_less_than_a_batch_per_rank(
    images: IndexedImages,
) -> None:
    shares = [
        seen(images.batches("train", batch_size=16, shuffle=True, rank=rank, world=3))
        for rank in range(3)
    ]
    assert [len(share) for share in shares] == [32, 32, 32]
    assert len(set(chain.from_iterable(shares))) == 96
    assert images.num_left_out("train", batch_size=16, world=3) == 4
    assert images.num_batches("train", batch_size=16, shuffle=True, world=3) == 2


@pytest.mark.ray
def test_a_set_smaller_than_a_batch_is_repeated_to_fill_it(images: IndexedImages) -> None:
    batches = list(images.batches("test", batch_size=16, shuffle=True))
    assert [len(batch) for batch in batches] == [16]
    assert set(seen(iter(batches))) == set(range(6))


@pytest.mark.ray
def test_a_stream_resumes_in_the_middle_of_an_epoch(images: IndexedImages) -> None:
    whole = seen(images.batches("train", batch_size=10, epoch=4, shuffle=True))
    rest = seen(images.batches("train", batch_size=10, epoch=4, shuffle=True, start=70))
    assert rest == whole[70:]


@pytest.mark.ray
def test_class_weights_even_out_the_classes(images: IndexedImages) -> None:
    batches = images.batches("train", batch_size=50, class_weights=[1, 1])
    labels = np.concatenate([batch.labels for batch in batches])
    assert np.bincount(labels).tolist() == pytest.approx([50, 50], abs=1)


@pytest.mark.ray
def test_an_unknown_split_is_refused(images: IndexedImages) -> None:
    with pytest.raises(DataError, match="unknown split 'dev'; expected one of train"):
        images.batches("dev", batch_size=4)


@pytest.mark.ray
def test_an_empty_split_has_no_batches(ray_session: Session, index: Index) -> None:
    only_train = Index(index.table.filter(pc.equal(index.table["split"], "train")), index.classes)
    images = IndexedImages(only_train, SPEC)
    assert list(images.batches("test", batch_size=4)) == []
    assert list(images.batches("test", batch_size=4, shuffle=True)) == []


@pytest.mark.ray
def test_images_that_break_after_indexing_are_left_out_and_listed(
    ray_session: Session, tmp_path: Path
) -> None:
    write(tmp_path, class_files({"bad": 10, "ok": 50}))
    index = build_index(DataConfig(uri=str(tmp_path)), SPEC)
    images = IndexedImages(index, SPEC, StreamOptions(images_per_task=8))
    train = images.paths("train")
    Path(train[3]).write_bytes(b"broken by now")
    Path(train[4]).unlink()
    batches = list(images.batches("train", batch_size=6))
    assert seen(iter(batches)) == [n for n in range(len(train)) if n not in (3, 4)]
    assert len(batches[0]) == 4
    reasons = {broken.path: broken.reason for broken in images.broken}
    assert set(reasons) == {train[3], train[4]}
    assert "not an image" in reasons[train[3]]
    assert "no such object" in reasons[train[4]]

    for path in train[5:9]:
        Path(path).unlink()
    with pytest.raises(DataError, match="6 of 60 images of the indexed set cannot be used"):
        list(images.batches("train", batch_size=6))
    tolerant = IndexedImages(index, SPEC, StreamOptions(max_broken_share=1))
    found = list(tolerant.batches("train", batch_size=2))
    assert seen(iter(found)) == [n for n in range(len(train)) if n not in range(3, 9)]
    assert min(map(len, found)) == 1, "a batch without an image comes to nobody"
    with pytest.raises(
        DataError, match=r"none of the 1 images of a batch .* there is no such object"
    ):
        list(tolerant.batches("train", batch_size=1, shuffle=True))
    for path in train:
        Path(path).unlink(missing_ok=True)
    with pytest.raises(DataError, match="none of the"):
        list(tolerant.batches("train", batch_size=7))


@pytest.mark.ray
def test_images_that_are_kept_in_memory_are_read_once(ray_session: Session, tmp_path: Path) -> None:
    write(tmp_path, class_files({"bad": 10, "ok": 30}))
    index = build_index(DataConfig(uri=str(tmp_path)), SPEC)
    size = SPEC.height * SPEC.width * 3
    anew = IndexedImages(index, SPEC)
    all_kept = IndexedImages(index, SPEC, StreamOptions(cache_bytes=1 << 20))
    some_kept = IndexedImages(index, SPEC, StreamOptions(cache_bytes=11 * size, max_broken_share=1))
    for images in (all_kept, some_kept):
        for epoch in range(2):
            order = Order(batch_size=7, epoch=epoch, shuffle=True)
            for kept, read in zip(
                images.batches("train", **order), anew.batches("train", **order), strict=True
            ):
                assert kept.ids.tolist() == read.ids.tolist()
                assert kept.labels.tolist() == read.labels.tolist()
                assert np.array_equal(kept.images, read.images)
    order = Order(batch_size=7, epoch=5, shuffle=True, start=7)
    wanted = list(anew.batches("train", **order))
    for path in anew.paths("train"):
        Path(path).unlink()
    found = list(all_kept.batches("train", **order))
    assert all(np.array_equal(a.images, b.images) for a, b in zip(found, wanted, strict=True))
    assert sum(len(batch) for batch in some_kept.batches("train", batch_size=28)) == 11


@pytest.mark.ray
def test_a_bucket_may_change_between_its_listing_and_its_reading(
    ray_session: Session, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(s3_server.make_bucket("changing"))
    for name, data in class_files({"bad": 20, "ok": 50}).items():
        store.write(name, data)
    listed = Store.list

    def list_and_change(self: Store, prefix: str = "") -> Iterator[Entry]:
        yield from listed(self, prefix)
        store.delete("ok/0003.jpg")
        store.write("ok/0004.jpg", jpeg(4_004))
        store.write("ok/new.jpg", jpeg(5_000))

    monkeypatch.setattr(Store, "list", list_and_change)
    index = build_index(DataConfig(uri=store.uri), SPEC)
    assert [broken.path for broken in index.quarantine] == [f"{store.uri}/ok/0003.jpg"]
    assert index.num_images() == 69
    images = IndexedImages(index, SPEC)
    store.delete(images.paths("train")[0].removeprefix(f"{store.uri}/"))
    assert seen(images.batches("train", batch_size=8)) == list(range(1, images.num_images("train")))


@pytest.mark.ray
def test_images_stream_from_a_bucket(ray_session: Session, s3_server: S3Server) -> None:
    uri = s3_server.make_bucket("streams") + "/set"
    write(open_store(uri), class_files({"bad": 10, "ok": 30}))
    index = build_index(DataConfig(uri=uri), SPEC)
    images = IndexedImages(index, SPEC)
    count = images.num_images("train")
    ids = seen(images.batches("train", batch_size=8))
    assert ids == list(range(count))


@pytest.mark.ray
def test_workers_stream_their_own_shares(ray_session: Session, images: IndexedImages) -> None:
    def consume(images: IndexedImages, rank: int) -> list[int]:
        batches = images.batches("train", batch_size=10, shuffle=True, rank=rank, world=2)
        return [number for batch in batches for number in batch.ids.tolist()]

    copy = pickle.loads(pickle.dumps(images))
    task = ray.remote(num_cpus=1)(consume)
    shares = ray.get([task.remote(copy, rank) for rank in range(2)])
    assert sorted(shares[0] + shares[1]) == list(range(NUM_TRAIN))


@pytest.mark.ray
def test_a_stream_left_early_stops_working(ray_session: Session, images: IndexedImages) -> None:
    stream = images.batches("train", batch_size=4, shuffle=True)
    next(stream)
    close = getattr(stream, "close")  # noqa: B009 - an iterator by its type, a generator in fact
    close()
    assert list(stream) == []
    assert len(seen(images.batches("test", batch_size=4))) == 6


@pytest.mark.ray
def test_chunks_ahead_of_a_slow_consumer_are_few(ray_session: Session, tmp_path: Path) -> None:
    size = 4 << 20

    def work(chunk: int) -> Columns:
        (tmp_path / str(chunk)).touch()
        return {"data": np.zeros((1, size), np.uint8)}

    ahead = 0
    for taken, _ in enumerate(run_chunks(work, 30, Pace(size, ahead=2, cpu_limit=2)), start=1):
        time.sleep(0.1)
        ahead = max(ahead, len(list(tmp_path.iterdir())) - taken)
    assert taken == 30
    # 2 waiting, 2 being computed, and what was started while the files were counted.
    assert ahead <= 5


@pytest.mark.ray
def test_batches_that_are_kept_are_the_callers_own(
    ray_session: Session, images: IndexedImages
) -> None:
    def read(is_kept: bool) -> list[Batch]:
        kept = []
        for batch in images.batches("train", batch_size=4, shuffle=True, seed=3):
            if is_kept:
                kept.append(batch)
            batch.images[0] ^= 0xFF  # theirs to write to
            if not is_kept:
                batch.images[:] = 0
        return kept

    read(is_kept=False)
    read(is_kept=False)
    paths = images.paths("train")
    for batch in read(is_kept=True):
        expected = np.stack([prepare(Path(paths[row]).read_bytes(), SPEC) for row in batch.ids])
        expected[0] ^= 0xFF
        assert np.array_equal(batch.images, expected)


@pytest.mark.ray
def test_chunks_travel_in_memory_that_is_used_again(ray_session: Session) -> None:
    def work(chunk: int) -> Columns:
        room = room_for((1, 1 << 20))
        room[:] = chunk
        return {"data": room, "process": np.array([os.getpid()])}

    pace = Pace(1 << 20, ahead=2, cpu_limit=2, slot_bytes=1 << 20)
    places, values = set(), []
    for columns in run_chunks(work, 40, pace):
        assert columns["data"].flags.writeable
        places.add(columns["data"].ctypes.data)
        values.append(int(columns["data"][0, -1]))
        assert os.getpid() not in columns["process"]
    assert values == list(range(40))
    # 2 waiting, 2 being computed, and the one at hand while the next one is begun.
    assert len(places) <= 6


@pytest.mark.ray
def test_a_task_on_another_node_returns_what_it_read(ray_session: Session) -> None:
    def work(chunk: int) -> Columns:
        room = room_for((1, 1 << 20))
        room[:] = chunk
        return {"data": room}

    slot = SlotPool(1 << 20).take()
    assert slot is not None
    here = ray.get_runtime_context().get_node_id()
    task = ray.remote(num_cpus=1)(_call)
    assert ray.get(task.remote(work, 4, here, slot.address)) == {"data": InSlot((1, 1 << 20))}
    assert set(slot.first(1 << 20)) == {4}
    found = ray.get(task.remote(work, 5, "another", slot.address))["data"]
    assert (found.min(), found.max()) == (5, 5)
    assert set(slot.first(1 << 20)) == {4}


@pytest.mark.ray
def test_a_run_left_early_leaves_no_slot_to_those_that_still_write(
    ray_session: Session, tmp_path: Path
) -> None:
    def work(chunk: int) -> Columns:
        room = room_for((1, 1 << 20))
        if chunk:
            while not (tmp_path / "go").exists():
                time.sleep(0.01)
        room[:] = 200 + chunk
        (tmp_path / f"{chunk}").touch()
        return {"data": room}

    def later(chunk: int) -> Columns:
        room = room_for((1, 1 << 20))
        room[:] = chunk
        return {"data": room}

    pace = Pace(1 << 20, ahead=2, cpu_limit=2, slot_bytes=1 << 20)
    run = run_chunks(work, 4, pace)
    next(run)
    close = getattr(run, "close")  # noqa: B009 - an iterator by its type, a generator in fact
    close()
    kept = list(run_chunks(later, 3, pace))
    (tmp_path / "go").touch()
    waited = time.monotonic()
    while not (tmp_path / "1").exists() and time.monotonic() - waited < 60:
        time.sleep(0.01)
    assert (tmp_path / "1").exists()
    assert [int(columns["data"].min()) for columns in kept] == [0, 1, 2]
    assert [int(columns["data"].max()) for columns in kept] == [0, 1, 2]


# Assembling, without Ray


def chunks_of(sizes: list[int], broken: set[int]) -> Iterator[Columns]:
    start = 0
    for size in sizes:
        rows = np.arange(start, start + size)
        yield {
            "id": rows,
            "image": rows.astype(np.uint8)[:, None, None, None],
            "reason": np.array(["gone" if row in broken else "" for row in rows], dtype=object),
        }
        start += size


@pytest.mark.parametrize("sizes", [[10], [3, 3, 3, 1], [1] * 10, [4, 6], [9, 1]])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 11])
def test_batches_do_not_depend_on_how_they_were_read(sizes: list[int], batch_size: int) -> None:
    cuts = np.append(np.arange(0, 10, batch_size), 10)
    batches = list(assemble(chunks_of(sizes, set()), cuts))
    assert [rows.tolist() for _, rows in batches] == [
        list(range(first, min(first + batch_size, 10))) for first in range(0, 10, batch_size)
    ]
    for images, rows in batches:
        assert images.ravel().tolist() == rows.tolist()


def test_a_broken_image_is_missing_from_its_own_batch_only() -> None:
    batches = list(assemble(chunks_of([4, 6], {0, 9}), np.array([0, 5, 10])))
    assert [rows.tolist() for _, rows in batches] == [[1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.ray
def test_the_order_of_a_seed_is_the_same_on_any_number_of_readers_and_after_a_resume(
    index: Index, capsys: pytest.CaptureFixture[str]
) -> None:
    digests: dict[str, str] = {}

    def note(what: str, ids: list[int]) -> None:
        digests[what] = hashlib.sha256(repr(ids).encode()).hexdigest()

    for readers in (1, 2, 4):  # tasks of one worker
        options = StreamOptions(images_per_task=16, cpu_limit=readers)
        images = IndexedImages(index, SPEC, options)
        note(f"{readers} tasks", seen(images.batches("train", batch_size=8, seed=5, shuffle=True)))
    for world in (1, 2, 4):  # workers, each with its part of every step
        streams = [
            images.batches(
                "train", batch_size=8 // world, seed=5, shuffle=True, rank=r, world=world
            )
            for r in range(world)
        ]
        steps = zip(*streams, strict=True)
        note(f"{world} workers", [number for step in steps for number in seen(iter(step))])
    begun = images.batches("train", batch_size=8, seed=5, shuffle=True)
    before = [next(begun) for _ in range(4)]
    begun.close()  # type: ignore[attr-defined]
    rest = images.batches("train", batch_size=8, seed=5, shuffle=True, start=32)
    note("after a resume", seen(iter(before)) + seen(rest))
    with capsys.disabled():
        print(f"\norder of seed 5: {digests}")
    assert len(set(digests.values())) == 1


@pytest.mark.ray
def test_killed_data_workers_change_nothing(
    ray_session: Session, index: Index, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kill the processes that read and decode, ten times, at random points of an epoch."""
    options = StreamOptions(images_per_task=4, prefetch_batches=1)
    seed = time.time_ns()
    chance = random.Random(seed)

    def digest(num_kills: int) -> tuple[str, int]:
        found, kills = hashlib.sha256(), 0
        for epoch in range(3):
            images = IndexedImages(index, SPEC, options)
            for batch in images.batches("train", batch_size=4, epoch=epoch, shuffle=True):
                for array in (batch.ids, batch.labels, batch.images):
                    found.update(array.tobytes())
                if kills < num_kills and chance.random() < 0.3:
                    kills += kill_one(ray_session, READER)
            assert not images.broken
        return found.hexdigest(), kills

    undisturbed, _ = digest(0)
    disturbed, kills = digest(10)
    with capsys.disabled():
        print(f"\n{kills} data workers killed (seed {seed}): {undisturbed == disturbed}")
    assert kills >= 3
    assert disturbed == undisturbed
