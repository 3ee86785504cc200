"""Folders and buckets through one interface: what is atomic, and how failures read."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

import models.storage
from models.errors import AlreadyExistsError, ConfigError, NotFoundError, StorageError
from models.storage import SLOW_BACKOFF, Entry, Store, open_store, read_uri, split_uri
from tests.conftest import S3Server
from tests.disks import fill, small_disk
from tests.outages import Outage


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store, once on the local disk and once in a bucket."""
    if request.param == "local":
        return open_store(tmp_path / "store")
    server: S3Server = request.getfixturevalue("s3_server")
    return open_store(server.make_bucket(f"b-{uuid4().hex[:12]}") + "/some/prefix")


def test_what_was_written_is_read_and_listed(store: Store) -> None:
    store.write("a/one.bin", b"1")
    store.write("a/b/two.bin", b"22")
    assert store.read("a/b/two.bin") == b"22"
    assert sorted((entry.key, entry.size) for entry in store.list()) == [
        ("a/b/two.bin", 2),
        ("a/one.bin", 1),
    ]
    folders, files = store.list_children("a")
    assert folders == ["b"]
    assert [entry.key for entry in files] == ["a/one.bin"]
    assert store.child("a").read("one.bin") == b"1"


@pytest.mark.parametrize("name", ["ü ä.jpg", "50%.png", "a#b+c&d.png", "x y/(1).bmp", "日本.jpg"])
def test_any_file_name_survives(store: Store, name: str) -> None:
    store.write(name, b"data")
    (entry,) = store.list()
    assert entry.key == name
    assert store.read(entry.key) == b"data"


def test_a_writable_store_stays_empty_and_another_says_why(store: Store, tmp_path: Path) -> None:
    store.check_writable()
    assert list(store.list()) == []
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(StorageError, match="file/models"):
        open_store(tmp_path / "file" / "models").check_writable()


@pytest.mark.usefixtures("s3_server")
def test_a_bucket_that_is_not_there_is_not_writable() -> None:
    with pytest.raises(NotFoundError, match="bucket 'nobody-made-this' does not exist"):
        open_store("s3://nobody-made-this/models").check_writable()


def test_create_writes_only_if_absent(store: Store) -> None:
    store.create("claim", b"mine")
    with pytest.raises(AlreadyExistsError, match="claim"):
        store.create("claim", b"yours")
    assert store.read("claim") == b"mine"


def test_of_many_creators_exactly_one_wins(store: Store) -> None:
    def attempt(number: int) -> bool:
        try:
            store.create("claim", str(number).encode())
        except AlreadyExistsError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(attempt, range(32)))
    assert sum(won) == 1
    assert store.read("claim") == str(won.index(True)).encode()


def test_a_missing_object_says_what_is_missing(store: Store) -> None:
    store.write("present", b"")
    with pytest.raises(NotFoundError, match="absent"):
        store.read("absent")
    assert not store.exists("absent")
    store.delete("absent")


def test_download_streams_to_a_file(store: Store, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    store.write("large", data)
    assert store.download("large", tmp_path / "copy") == len(data)
    assert (tmp_path / "copy").read_bytes() == data


def test_a_store_survives_pickling(store: Store) -> None:
    store.write("key", b"value")
    again: Store = pickle.loads(pickle.dumps(store))
    assert again.read("key") == b"value"


@pytest.mark.parametrize(
    "call",
    [
        lambda store: list(store.list()),
        lambda store: store.read("key"),
        lambda store: store.write("key", b""),
        lambda store: store.list_children(),
    ],
)
def test_a_missing_bucket_is_named(s3_server: S3Server, call: Callable[[Store], object]) -> None:
    with pytest.raises(NotFoundError, match="no-such-bucket") as caught:
        call(open_store("s3://no-such-bucket/x"))
    assert "does not exist" in str(caught.value)
    assert "Debug source" not in str(caught.value)


def test_reading_a_missing_folder_does_not_make_it(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        list(open_store(tmp_path / "absent").list())
    assert not (tmp_path / "absent").exists()


def test_an_unreachable_endpoint_is_a_storage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with pytest.raises(StorageError, match="s3://bucket/key"):
        open_store("s3://bucket").read("key")


@pytest.mark.parametrize("call", ["write", "create", "upload"])
def test_a_full_disk_is_named(tmp_path: Path, call: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(9000))
    with small_disk(tmp_path / "disk", "64k"):
        fill(tmp_path / "disk" / "filler")
        store = open_store(tmp_path / "disk")
        data = file if call == "upload" else file.read_bytes()
        with pytest.raises(StorageError, match=f"cannot .* {store.uri}/new: the disk is full"):
            getattr(store, call)("new", data)
        assert [entry.key for entry in store.list()] == ["filler"]


def test_an_unknown_scheme_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"ftp.*s3"):
        open_store("ftp://host/path")


@pytest.mark.parametrize("uri", ["s3://", "s3:///", "s3:///folder", "gs://"])
def test_a_uri_without_a_bucket_is_refused(uri: str) -> None:
    """`s3://$BUCKET` with an empty variable once wrote into a folder named `s3:`."""
    with pytest.raises(ConfigError, match="names no bucket"):
        open_store(uri)


def test_a_uri_of_one_object_is_split_and_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"w")
    assert split_uri(path) == (str(tmp_path), "weights.pt")
    assert read_uri(f"file://{path}") == b"w"
    assert split_uri("s3://b/a/w.pt") == ("s3://b/a", "w.pt")


@pytest.mark.slow
def test_a_patient_store_outlives_a_bucket_that_answers_503(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3_server.make_bucket("busy")
    Store(bucket).write("a/b", b"0123456789")
    with Outage.before(s3_server.endpoint) as outage:
        monkeypatch.setenv("AWS_ENDPOINT_URL", outage.endpoint)
        began = time.monotonic()
        outage.ends = began + 60
        with pytest.raises(StorageError):
            Store(bucket).read("a/b")
        assert time.monotonic() < began + 15, "it waited as long as a patient one"
        outage.ends = time.monotonic() + 4
        store = Store(bucket, is_patient=True)
        assert store.child("a").is_patient
        assert store.read_range("a/b", 3, 4) == b"3456"
        assert time.monotonic() > outage.ends
        assert outage.num_refused > 6
        assert [entry.key for entry in store.list()] == ["a/b"]


def test_patience_is_counted_in_time_and_not_in_attempts(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=5)}
    monkeypatch.setattr(models.storage, "SLOW_BACKOFF", {**SLOW_BACKOFF, **pauses})
    bucket = s3_server.make_bucket("attempts")
    Store(bucket).write("a", b"0123456789")
    with Outage.before(s3_server.endpoint) as outage:
        monkeypatch.setenv("AWS_ENDPOINT_URL", outage.endpoint)
        outage.ends = time.monotonic() + 6
        assert Store(bucket, is_patient=True).read("a") == b"0123456789"
        assert outage.num_refused > 150, "so many as took 57 s of an outage, and half as many more"


@pytest.mark.parametrize(
    ("start", "length", "found"), [(2, 3, b"234"), (8, 10, b"89"), (10, 5, b""), (20, 5, b"")]
)
def test_a_range_beyond_the_end_is_shorter(
    store: Store, start: int, length: int, found: bytes
) -> None:
    store.write("range", b"0123456789")
    assert store.read_range("range", start, length) == found


def test_an_object_streams_as_a_file(store: Store) -> None:
    data = os.urandom(3 << 20)
    store.write("long", data)
    with store.open_stream("long") as file:
        assert file.read(10) == data[:10]
        assert file.read() == data[10:]
        assert file.read() == b""
    with pytest.raises(NotFoundError, match="nothing"):
        store.open_stream("nothing")


@pytest.mark.parametrize("name", ["run#2", "what?", "50%25", "my%20set", "ü b+c"])
def test_a_prefix_of_any_name_is_no_other_prefix(s3_server: S3Server, name: str) -> None:
    """`packed#2` once meant `packed`, which packing with --overwrite then removed."""
    bucket = s3_server.make_bucket(f"b-{uuid4().hex[:12]}")
    whole = open_store(bucket)
    whole.write("run/one.bin", b"1")
    store = open_store(f"{bucket}/{name}")
    assert list(store.list()) == []
    store.write("two.bin", b"2")
    assert store.list_children() == ([], [Entry("two.bin", 1)])
    assert store.read("two.bin") == whole.read(f"{name}/two.bin") == b"2"
    store.delete("two.bin")
    assert [entry.key for entry in whole.list()] == ["run/one.bin"]


def test_what_a_console_puts_into_an_empty_folder_is_no_object(s3_server: S3Server) -> None:
    bucket = s3_server.make_bucket(f"b-{uuid4().hex[:12]}")
    import boto3

    boto3.client("s3", endpoint_url=s3_server.endpoint).put_object(
        Bucket=bucket.removeprefix("s3://"), Key="new/", Body=b""
    )
    store = open_store(f"{bucket}/new")
    assert list(store.list()) == []
    assert store.list_children() == ([], [])
