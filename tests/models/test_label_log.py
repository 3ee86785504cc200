"""The log of label revisions: nothing is lost, nobody is overwritten, and it always opens."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from models.errors import (
    LabelMapError,
    NotFoundError,
    RequestKeyError,
    StaleBaseError,
    StorageError,
)
from models.label_edits import Alias, Hide, Rename, SetThreshold
from models.label_log import LabelLog, open_log
from models.label_revision import Author, Revision
from models.labels import OutputClass
from models.storage import Store
from tests.conftest import S3Server

CLASSES = tuple(OutputClass(id=each, name=each.upper()) for each in "abc")
ANN = Author("ann", "a test")


def log_in(store: Path | str) -> LabelLog:
    """The log of the model `part`."""
    return open_log(str(store), "part", CLASSES)


def rename(log: LabelLog, name: str, base: int | None = None, author: Author = ANN) -> Revision:
    """Write one revision that gives output a another name."""
    return log.write([Rename(label="a", name=name)], author, base)


def test_a_log_begins_with_the_classes_of_the_model(tmp_path: Path) -> None:
    log = log_in(tmp_path / "none yet")
    assert log.head() == log.advance(0) == 0
    assert [label.name for label in log.read(0).map.labels] == ["A", "B", "C"]
    with pytest.raises(NotFoundError):
        log.read(1)


def test_revisions_count_up_and_say_who_when_and_why(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    first = rename(log, "Bolt")
    second = rename(log, "Nut", base=1)
    assert (first.number, second.number, second.parent) == (1, 2, 1)
    assert log.read(1) == first
    assert (tmp_path / "part" / "000002.json").is_file()
    history = dict(log.history())
    assert list(history) == [2, 1, 0]
    newest = history[2]
    assert isinstance(newest, Revision)
    assert newest.edits == ({"op": "rename", "label": "a", "name": "Nut", "keep_alias": False},)
    assert (newest.author, newest.reason) == ("ann", "a test")


def test_a_rollback_is_one_more_revision(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    rename(log, "Bolt")
    rename(log, "Nut")
    back = log.write(1, ANN)
    assert back.number == 3
    assert back.map == log.read(1).map
    assert log.write(0, ANN).map == log.read(0).map


def test_a_whole_map_may_not_forget_a_label(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    first = log.read(0).map
    other = first.model_copy(
        update={
            "labels": tuple(
                label.model_copy(update={"id": "z"}) if label.id == "a" else label
                for label in first.labels
            )
        }
    )
    with pytest.raises(LabelMapError, match="leaves out label 'a'"):
        log.draft(other, ANN, base=0)


def test_a_stale_base_is_refused_with_the_current_one(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    rename(log, "Bolt")
    with pytest.raises(StaleBaseError, match="at revision 1, not at 0") as caught:
        rename(log, "Nut", base=0)
    assert caught.value.current == 1
    with pytest.raises(StaleBaseError):
        rename(log, "Nut", base=7)


@pytest.mark.parametrize("place", ["disk", pytest.param("s3", marks=pytest.mark.slow)])
def test_of_two_hundred_writers_on_one_base_exactly_one_wins(
    tmp_path: Path, s3_server: S3Server, place: str
) -> None:
    store = s3_server.make_bucket(f"labels-{uuid4().hex[:8]}") if place == "s3" else str(tmp_path)
    log = log_in(store)
    rename(log, "first")
    start = threading.Barrier(200)

    def write(number: int) -> str:
        mine = log.draft([Rename(label="a", name=f"writer {number}")], ANN, base=1)
        start.wait()
        try:
            return f"won {log.append(mine).map.find('a').name}"
        except StaleBaseError as error:
            return f"stale, now {error.current}"

    with ThreadPoolExecutor(200) as pool:
        outcomes = Counter(pool.map(write, range(200)))
    assert outcomes.pop("stale, now 2") == 199
    (winner,) = outcomes
    assert log.head() == 2
    assert winner == f"won {log.read(2).map.find('a').name}"


def test_a_write_that_is_sent_again_is_the_same_write(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    author = Author("ann", "again", request_key="k1")
    first = rename(log, "Bolt", base=0, author=author)
    rename(log, "other")
    rename(log, "more")
    # Its base is stale by now, and its edit would change something: neither counts.
    assert rename(log, "Bolt", base=0, author=author) == first
    assert rename(log, "Bolt", author=author) == first
    back = log.write(0, Author("ann", "", request_key="k2"))
    assert log.write(0, Author("ann", "", request_key="k2")) == back
    whole = log.read(1).map
    published = log.write(whole, Author("ann", "", request_key="k3"), base=4)
    assert log.write(whole, Author("ann", "", request_key="k3"), base=4) == published
    assert log.head() == 5
    for change in ([Rename(label="a", name="Another")], log.read(2).map, 1):
        for key in ("k1", "k2", "k3"):
            with pytest.raises(RequestKeyError, match=f"'{key}' was used for another write"):
                log.write(change, Author("ann", "", request_key=key), base=5)


def test_writers_that_name_no_base_all_get_their_turn(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    start = threading.Barrier(16)

    def write(number: int) -> int:
        start.wait()
        edit = Alias(label="a", add=(f"alias {number}",))
        return log.write([edit], Author(f"writer {number}", "")).number

    with ThreadPoolExecutor(16) as pool:
        assert sorted(pool.map(write, range(16))) == list(range(1, 17))
    assert len(log.read(16).map.find("a").aliases) == 16


def test_tries_of_one_write_at_the_same_time_store_it_once(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    start = threading.Barrier(16)

    def write(_: int) -> Revision:
        start.wait()
        return rename(log, "Bolt", base=0, author=Author("ann", "", request_key="k"))

    with ThreadPoolExecutor(16) as pool:
        assert len({each.number for each in pool.map(write, range(16))}) == 1
    assert log.head() == 1


def test_a_whole_map_needs_its_base(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    rename(log, "Bolt")
    with pytest.raises(LabelMapError, match="needs its base"):
        log.write(log.read(0).map, ANN)
    with pytest.raises(LabelMapError, match="of the newest revision already"):
        log.write(1, ANN)


@pytest.mark.parametrize("content", [b"", b"{}", b"garbage", b'{"format_version": 2}'])
def test_a_broken_revision_stops_neither_reading_nor_writing(
    tmp_path: Path, content: bytes
) -> None:
    log = log_in(tmp_path)
    first = rename(log, "Bolt")
    (tmp_path / "part" / "000002.json").write_bytes(content)
    sound, problem = log.newest_sound(log.head())
    assert sound == first
    assert "000002.json" in problem
    third = log.write([Hide(label="b")], ANN, base=2)
    assert (third.number, third.map.find("a").name) == (3, "Bolt")
    assert log.newest_sound(3) == (third, "")
    assert [type(each).__name__ for _, each in log.history()].count("LabelMapError") == 1


def test_a_revision_of_another_model_is_not_taken(tmp_path: Path) -> None:
    rename(log_in(tmp_path), "Bolt")
    (tmp_path / "other").mkdir()
    (tmp_path / "part" / "000001.json").rename(tmp_path / "other" / "000001.json")
    with pytest.raises(LabelMapError, match="revision 1 of 'part'"):
        open_log(str(tmp_path), "other", CLASSES).read(1)
    more = (*CLASSES, OutputClass(id="d", name="D"))
    (tmp_path / "other").rename(tmp_path / "again")
    (tmp_path / "again").rename(tmp_path / "part2")
    with pytest.raises(LabelMapError):
        LabelLog(Store(str(tmp_path / "part2")), "part", more).read(1)


def test_nobody_writes_without_a_name(tmp_path: Path) -> None:
    with pytest.raises(LabelMapError, match="needs an author"):
        rename(log_in(tmp_path), "Bolt", author=Author(" ", ""))


def test_a_missing_bucket_is_no_empty_log(s3_server: S3Server) -> None:
    with pytest.raises(NotFoundError, match="'no-such-bucket' does not exist"):
        log_in("s3://no-such-bucket/labels").head()


class Careless(Store):
    """A store that replaces what is there, as some S3-compatible ones do."""

    def create(self, key: str, data: bytes) -> None:
        self.write(key, data)


def test_a_store_that_ignores_create_if_absent_is_found_out(
    tmp_path: Path, s3_server: S3Server
) -> None:
    log_in(tmp_path).check_store()
    log_in(s3_server.make_bucket(f"probe-{uuid4().hex[:8]}")).check_store()
    with pytest.raises(StorageError, match="conditional writes"):
        LabelLog(Careless(str(tmp_path)), "part", CLASSES).check_store()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    log_in(tmp_path).store.create(".create-probe", b"left behind")
    log_in(tmp_path).check_store()


WRITER = """
import sys
from models.label_edits import Rename
from tests.models.test_label_log import ANN, log_in
log = log_in(sys.argv[1])
print("ready", flush=True)
for number in range(10_000):
    log.write([Rename(label="a", name=f"{sys.argv[2]} {number}")], ANN)
    print(log.head(), flush=True)
"""


@pytest.mark.slow
def test_a_writer_killed_at_any_point_leaves_a_log_that_opens(tmp_path: Path) -> None:
    acknowledged = 0
    for attempt in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(attempt)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        numbers = [int(process.stdout.readline())]
        time.sleep(0.1 + attempt * 0.0137)
        process.send_signal(signal.SIGKILL)
        numbers += [int(line) for line in process.stdout.read().split("\n")[:-1]]
        process.wait()
        log = log_in(tmp_path)
        head = log.head()
        assert head in (numbers[-1], numbers[-1] + 1)  # all that was acknowledged is there
        assert [log.read(number).number for number in range(head + 1)] == list(range(head + 1))
        assert head > acknowledged
        acknowledged = head
    log.write([SetThreshold(threshold=0.5)], ANN)
    assert log.head() == acknowledged + 1


def test_a_write_sent_again_while_the_first_is_stored_is_one_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first try was stored between the look for it and the draft of the second, which then said
    that it changes nothing.
    """
    log = log_in(tmp_path)
    author = dataclasses.replace(ANN, request_key="5f2c")
    edits = [Rename(label="a", name="navy")]
    look, stored = LabelLog._sent, list[Revision]()

    def look_and_be_overtaken(*arguments: Any) -> Revision | None:
        found = look(*arguments)
        if not stored:
            stored.append(log.append(log.draft(edits, author)))
        return found

    monkeypatch.setattr(LabelLog, "_sent", look_and_be_overtaken)
    again = log.write(edits, author)
    assert again == stored[0]
    assert log.head() == 1


def test_a_stray_file_of_a_huge_number_costs_no_million_reads(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    for number in range(30):
        rename(log, f"name {number}")
    log.store.write("20260101.json", b"a file of somebody")
    head = log.head()
    assert head == 20260101
    numbers = list(log.downwards(head))
    assert numbers == [*range(head, head - 20, -1), *range(30, -1, -1)]
    assert list(log.downwards(head, 28)) == [*range(head, head - 20, -1), 30, 29]
    assert list(log.downwards(30, 27)) == [30, 29, 28]
    assert list(log.downwards(3)) == [3, 2, 1, 0]
    sound, problem = log.newest_sound(head)
    assert sound.number == 30
    assert "20260101.json" in problem
