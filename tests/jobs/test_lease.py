"""One run at a time writes the work of an output, whatever sleeps or dies."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from jobs import lease
from jobs.lease import acquire
from models.errors import ConfigError, StorageError
from models.storage import Store, open_store
from tests.conftest import S3Server
from tests.jobs.score.running import wait_for

pytestmark = pytest.mark.slow  # leases pass in real time


@pytest.fixture
def quick_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease whose holder is found dead sooner."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lease, "DEAD_SECONDS", 1.0)


@pytest.fixture(params=["disk", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on a disk or in a bucket."""
    if request.param == "disk":
        (tmp_path / "work").mkdir()
        return str(tmp_path / "work")
    server: S3Server = request.getfixturevalue("s3_server")
    return server.make_bucket(f"lease-{time.time_ns()}") + "/work"


@pytest.mark.usefixtures("quick_lease")
def test_a_lease_of_another_machine_is_taken_over_only_when_it_shows_no_life(place: str) -> None:
    store = open_store(place)
    holder = {"host": "elsewhere", "processes": "", "pid": 1, "started": 0.0}
    store.create("lock-000003.json", json.dumps({**holder, "beat": 0}).encode())
    ended = threading.Event()

    def live() -> None:
        for beat in range(1, 1000):
            if ended.wait(0.2):
                return
            store.write("lock-000003.json", json.dumps({**holder, "beat": beat}).encode())

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(ConfigError, match=r"process 1 on elsewhere.*another --output"):
            acquire(store, "--output")
    finally:
        ended.set()
        thread.join()
    taken = acquire(store, "--output")
    assert taken.number == 4
    taken.check()
    taken.release(forget=False)
    again = acquire(store, "--output")
    assert again.number == 5
    again.release(forget=True)
    assert list(store.list()) == []


@pytest.mark.usefixtures("quick_lease")
def test_of_many_that_want_a_lease_one_gets_it(place: str) -> None:
    store = open_store(place)
    got: list[lease.Lease] = []
    refused: list[ConfigError] = []
    together = threading.Barrier(8)

    def take() -> None:
        together.wait()
        try:
            got.append(acquire(store, "--output"))
        except ConfigError as error:
            refused.append(error)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in got:
        each.release(forget=True)
    assert (len(got), len(refused)) == (1, 7)


@pytest.mark.usefixtures("quick_lease")
def test_who_slept_and_lost_the_lease_stops(place: str) -> None:
    store = open_store(place)
    slept = acquire(store, "--output")
    store.create("lock-000002.json", b"{}")

    def is_lost() -> bool:
        try:
            slept.check()
        except ConfigError:
            return True
        return False

    wait_for(is_lost, 5)
    slept.release(forget=True)
    assert store.exists("lock-000002.json")


def test_a_lease_whose_release_could_not_be_noted_is_free_for_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk the next try of the same process was refused by itself."""
    store = open_store(tmp_path)
    first = acquire(store, "DEST")
    with pytest.raises(ConfigError, match="another run"):
        acquire(store, "DEST")

    def full(*_: object) -> None:
        raise StorageError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", full)
        first.release(forget=False)
    second = acquire(store, "DEST")
    assert second.number == 2
    second.release(forget=True)


def test_a_store_that_does_not_answer_is_no_sign_of_a_dead_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    first = acquire(store, "DEST")

    def busy(*_: object) -> bytes:
        raise StorageError("503 slow down")

    try:
        with monkeypatch.context() as patch:
            patch.setattr(Store, "read", busy)
            with pytest.raises(StorageError, match="slow down"):
                acquire(store, "DEST")
    finally:
        first.release(forget=True)


def test_another_spelling_of_the_folder_is_the_same_lease(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    first = acquire(open_store(tmp_path / "real"), "DEST")
    try:
        with pytest.raises(ConfigError, match="another run"):
            acquire(open_store(tmp_path / "link"), "DEST")
    finally:
        first.release(forget=True)


@pytest.mark.usefixtures("quick_lease")
def test_a_machine_of_the_same_name_is_another_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path)
    gone = {**lease._this_process(), "pid": 2**22 + 1}  # no process has this number
    store.create("lock-000001.json", json.dumps({**gone, "beat": 0}).encode())
    acquire(store, "--output").release(forget=False)
    assert "watching" not in caplog.text, "of this machine it is known to be dead"
    store.write("lock-000002.json", json.dumps({**gone, "boot": "another", "beat": 0}).encode())
    acquire(store, "--output").release(forget=True)
    assert "watching for 1 s whether it is alive" in caplog.text, "of another it shows in time"
