"""Scoring while things go wrong: full queues, failing and restarting servers, killed runs, two runs
at once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
import pytest

from jobs.score import lease, patience
from jobs.score.client import Answer
from jobs.score.columns import Columns
from jobs.score.items import Item
from jobs.score.lease import acquire
from jobs.score.parts import Parts
from jobs.score.reading import MAX_STREAK, Failure, Loaded, Streak
from models.errors import ConfigError, StorageError
from models.label_edits import Rename
from models.label_log import open_log
from models.label_revision import Author
from models.storage import open_store
from serve_app.config import ServeOptions
from serve_app.model import ServedModel, open_served
from tests.bundles import tiny_bundle
from tests.conftest import S3Server
from tests.jobs.data.images import jpeg, write
from tests.jobs.score.conftest import CLASSES, Model, Shell, work_folder
from tests.jobs.score.serving import ROOT, Border, Process, Site, served

pytestmark = pytest.mark.slow  # most wait for something in real time

NUM_IMAGES = 120
# The command, with parts small enough for a test to see several.
PROGRAM = """
import sys
import jobs.score.parts
from jobs.score.__main__ import main
jobs.score.parts.ROWS_PER_PART = 16
sys.exit(main())
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of sound images."""
    write(tmp_path / "images", {f"{n:04}.jpg": jpeg(n) for n in range(NUM_IMAGES)})
    return tmp_path / "images"


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start the command as a process of its own."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def num_parts(output: Path) -> int:
    """Return how many parts an unfinished run has written."""
    return len(list((work_folder(output) / "parts").glob("*.parquet")))


def assert_complete(output: Path, images: Path) -> None:
    """Assert that there is one good row for each image, in order, and nothing else is left."""
    table = pd.read_parquet(output)
    assert list(table["path"]) == sorted(str(path) for path in images.iterdir())
    assert table["code"].isna().all()
    assert table["label"].isin(CLASSES).all()
    assert not work_folder(output).exists()


def test_a_full_queue_is_waited_for_as_long_as_it_says(
    model: Model, shell: Shell, images: Path, tmp_path: Path
) -> None:
    model.border.refusals = [(429, {"Retry-After": "1"})]
    output = tmp_path / "s.parquet"
    ended = shell.run(images, "--url", model.url, "--output", output, "--concurrency", 1)
    asked = [when for when, path in model.border.seen if path.endswith("/classify")]
    assert asked[1] - asked[0] >= 1.0
    assert ended.status == 0
    assert ended.line["num_retries"] == 1
    assert_complete(output, images)


def test_what_passes_costs_no_row(model: Model, shell: Shell, images: Path, tmp_path: Path) -> None:
    model.border.refusals = [(503, {}), (500, {}), (502, {}), (408, {}), (404, {}), (429, {})]
    output = tmp_path / "s.parquet"
    ended = shell.run(images, "--url", model.url, "--output", output)
    assert ended.line["num_retries"] >= 6
    assert "trying again" in ended.shown
    assert "answers again" in ended.shown
    assert_complete(output, images)


def test_a_refused_key_in_mid_run_stops_it_at_once(
    model: Model, shell: Shell, images: Path, tmp_path: Path
) -> None:
    model.border.forbids_after = 64
    output = tmp_path / "s.parquet"
    started = time.monotonic()
    shown = shell.refused(images, "--url", model.url, "--output", output)
    assert time.monotonic() - started < 20
    assert "ask for one with the scope `infer`" in shown
    assert "go on with --resume" in shown
    model.border.forbids_after = 10**9
    ended = shell.run(images, "--url", model.url, "--output", output, "--resume")
    assert 32 <= ended.line["num_resumed"] < NUM_IMAGES
    assert_complete(output, images)


def test_an_image_on_which_the_server_fails_costs_one_row(
    model: Model, shell: Shell, images: Path, tmp_path: Path
) -> None:
    model.border.poison = b"POISON"
    bad = images / "0033.jpg"
    bad.write_bytes(bad.read_bytes() + b"POISON")
    output = tmp_path / "s.parquet"
    ended = shell.run(images, "--url", model.url, "--output", output)
    assert ended.line["failures"] == {"server_failed": 1}
    assert ended.line["num_scored"] == NUM_IMAGES - 1
    table = pd.read_parquet(output).set_index("path")
    assert "it broke" in table.loc[str(bad), "error"]


def test_a_server_that_fails_on_every_image_stops_the_run(
    model: Model, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "MAX_DELAY_SECONDS", 0.01)  # the test would take a minute
    model.border.poison = b"\xff\xd8"  # how every JPEG begins
    write(tmp_path / "images", {f"{n:04}.jpg": jpeg(n) for n in range(60)})
    shown = shell.refused(
        tmp_path / "images", "--url", model.url, "--output", tmp_path / "s.csv", "--batch", 2
    )
    assert "failed on 20 images in a row and answered no other" in shown
    model.border.poison = b""
    ended = shell.run(
        tmp_path / "images", "--url", model.url, "--output", tmp_path / "s.csv", "--resume"
    )
    assert ended.line["num_scored"] == 60


def test_a_server_that_is_killed_and_started_again_costs_no_row(
    bundle: str, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "s.parquet"
    server = Process(bundle, delay_seconds=0.1)
    server.start()
    try:
        job = start(images, "--url", server.url, "--output", output, "--batch", 4)
        wait_for(lambda: num_parts(output) >= 2)
        server.kill()
        time.sleep(0.5)
        assert job.poll() is None
        server.start()
        out, err = job.communicate(timeout=60)
    finally:
        server.kill()
    assert job.returncode == 0, err
    assert json.loads(out)["num_retries"] > 0
    assert "trying again" in err
    assert_complete(output, images)


def test_a_run_whose_server_is_gone_stops_and_goes_on_later(
    bundle: str, shell: Shell, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "s.parquet"
    server = Process(bundle, delay_seconds=0.1)
    server.start()
    arguments = (images, "--url", server.url, "--output", output, "--batch", 4)
    try:
        job = start(*arguments, "--patience", 1)
        wait_for(lambda: num_parts(output) >= 2)
        server.kill()
        out, err = job.communicate(timeout=60)
        assert (job.returncode, out) == (1, "")
        assert "Nothing else has been answered for 1 s" in " ".join(err.split())
        assert "go on with --resume" in err
        assert not output.exists()
        assert "give --resume to go on with it" in shell.refused(*arguments)
        server.start()
        ended = shell.run(*arguments, "--resume")
    finally:
        server.kill()
    assert ended.line["num_resumed"] >= 32
    assert ended.line["num_images"] == NUM_IMAGES
    assert_complete(output, images)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_run_that_is_killed_goes_on_without_losing_or_repeating_a_row(
    model: Model, shell: Shell, images: Path, tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"s.{suffix}"
    model.border.delay_seconds = 0.1
    arguments = (images, "--url", model.url, "--output", output, "--batch", 4)
    for parts in (2, 4):  # killed twice
        job = start(*arguments, *(["--resume"] if parts > 2 else []))
        wait_for(lambda parts=parts: num_parts(output) >= parts)  # type: ignore[misc]
        job.kill()
        job.communicate()
    assert not output.exists()
    kept = 16 * num_parts(output)
    model.border.delay_seconds = 0
    time.sleep(0.3)  # the server ends what the killed run had asked
    before = model.border.num_images
    ended = shell.run(*arguments, "--resume")
    assert ended.line["num_resumed"] == kept
    assert model.border.num_images - before == NUM_IMAGES - kept
    table = pd.read_csv(output) if suffix == "csv" else pd.read_parquet(output)
    assert sorted(table["path"]) == sorted(str(path) for path in images.iterdir())
    assert table["label"].isin(CLASSES).all()
    assert sum(ended.line["labels"].values()) == NUM_IMAGES


def test_a_run_that_is_ended_keeps_every_answer_it_had(
    model: Model, shell: Shell, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "s.parquet"
    model.border.delay_seconds = 0.1
    arguments = (images, "--url", model.url, "--output", output, "--batch", 4)
    job = start(*arguments)
    wait_for(lambda: num_parts(output) >= 2)
    time.sleep(0.15)
    job.send_signal(signal.SIGTERM)
    _, err = job.communicate(timeout=30)
    assert job.returncode == 130
    assert "go on with --resume" in err
    model.border.delay_seconds = 0
    ended = shell.run(*arguments, "--resume")
    assert ended.line["num_resumed"] % 16  # more than the full parts
    assert_complete(output, images)


def test_a_part_that_cannot_be_read_is_scored_again(
    model: Model, shell: Shell, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "s.parquet"
    model.border.delay_seconds = 0.1
    arguments = (images, "--url", model.url, "--output", output, "--batch", 4)
    job = start(*arguments)
    wait_for(lambda: num_parts(output) >= 3)
    job.kill()
    job.communicate()
    part = min((work_folder(output) / "parts").iterdir())
    part.write_bytes(part.read_bytes()[:100])
    model.border.delay_seconds = 0
    ended = shell.run(*arguments, "--resume")
    assert "cannot be read and is left out" in ended.shown
    table = pd.read_parquet(output)
    assert sorted(table["path"]) == sorted(str(path) for path in images.iterdir())


def test_rows_that_failed_by_the_servers_fault_are_tried_again(
    model: Model, shell: Shell, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "s.parquet"
    model.border.poison = b"POISON"
    bad = images / "0000.jpg"
    bad.write_bytes(bad.read_bytes() + b"POISON")
    model.border.delay_seconds = 0.1
    arguments = (images, "--url", model.url, "--output", output, "--batch", 4)
    job = start(*arguments)
    wait_for(lambda: num_parts(output) >= 2)
    job.kill()
    job.communicate()
    model.border.poison, model.border.delay_seconds = b"", 0
    ended = shell.run(*arguments, "--resume")
    assert ended.line["failures"] == {}
    table = pd.read_parquet(output)
    assert sorted(table["path"]) == sorted(str(path) for path in images.iterdir())


def test_a_resumed_run_has_to_be_the_same_run(
    model: Model, shell: Shell, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "s.parquet"
    manifest = tmp_path / "list.csv"
    paths = [f"images/{path.name}" for path in sorted(images.iterdir())]
    manifest.write_text("\n".join(["path", *paths]))
    model.border.refusals = [(403, {})]
    arguments = (manifest, "--url", model.url, "--output", output)
    shell.refused(*arguments)
    shown = shell.refused(*arguments, "--resume", "--scores", "all")
    assert "'scores': 'top'" in shown
    assert "'scores': 'all'" in shown
    assert "source was" in shell.refused(images, *arguments[1:], "--resume")
    manifest.write_text("\n".join(["path", *reversed(paths)]))
    assert "fingerprint was" in shell.refused(*arguments, "--resume")
    assert shell.run(*arguments, "--overwrite").status == 0
    assert list(pd.read_parquet(output)["path"]) == paths[::-1]


def test_images_that_came_meanwhile_are_scored_by_a_resumed_run(
    model: Model, shell: Shell, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "s.parquet"
    model.border.delay_seconds = 0.1
    arguments = (images, "--url", model.url, "--output", output, "--batch", 4)
    job = start(*arguments)
    wait_for(lambda: num_parts(output) >= 2)
    job.kill()
    job.communicate()
    model.border.delay_seconds = 0
    write(images, {"-first.jpg": jpeg(900)})
    assert shell.run(*arguments, "--resume").line["num_images"] == NUM_IMAGES + 1
    table = pd.read_parquet(output)
    assert sorted(table["path"]) == sorted(str(path) for path in images.iterdir())


@pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
def test_the_second_of_two_runs_on_one_output_is_refused(
    model: Model, shell: Shell, images: Path, tmp_path: Path, flag: str
) -> None:
    output = tmp_path / "s.parquet"
    model.border.delay_seconds = 0.1
    arguments = (images, "--url", model.url, "--output", output, "--batch", 4)
    job = start(*arguments)
    wait_for(lambda: num_parts(output) >= 1)
    shown = shell.refused(*arguments, flag)
    assert f"another run (process {job.pid} on" in shown
    model.border.delay_seconds = 0
    _, err = job.communicate(timeout=60)
    assert job.returncode == 0, err
    assert_complete(output, images)


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
        with pytest.raises(ConfigError, match="process 1 on elsewhere"):
            acquire(store)
    finally:
        ended.set()
        thread.join()
    taken = acquire(store)
    assert taken.number == 4
    taken.check()
    taken.release(forget=False)
    again = acquire(store)
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
            got.append(acquire(store))
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
    slept = acquire(store)
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


@pytest.mark.usefixtures("quick_lease")
def test_an_image_that_two_runs_wrote_counts_once(place: str) -> None:
    store, columns = open_store(place), Columns(False, True, "none", 1, 0)
    taken = acquire(store)
    (first, *others) = (Answer(Item(f"{n}", f"{n}.jpg", f"{n}.jpg"), "good", 0.9) for n in range(4))
    awake, asleep = Parts(store, columns, taken), Parts(store, columns, taken)
    awake.add([first, *others[:1]])
    asleep.add([first, *others[1:]])
    assert awake.flush() is not None
    assert asleep.flush() is not None
    resumed = Parts(store, columns, taken)
    done, tables = resumed.load()
    assert len(done) == 4
    assert all(str(n) in done for n in range(4))
    assert "4" not in done
    found = [path for table in tables for path in table["path"].to_pylist()]
    assert sorted(found) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    taken.release(forget=True)


def test_several_versions_in_one_run_are_told(
    model: Model, shell: Shell, images: Path, tmp_path: Path
) -> None:
    model.border.versions = [1, 2, 2]
    output = tmp_path / "s.parquet"
    ended = shell.run(images, "--url", model.url, "--output", output, "--batch", 8)
    assert ended.line["versions"] == {"1": NUM_IMAGES - 16, "2": 16}
    assert "more than one version has answered" in ended.shown
    assert (pd.read_parquet(output)["version"] == 2).sum() == 16


@contextmanager
def changing_labels(folder: Path) -> Iterator[tuple[Model, Callable[[str, str], int]]]:
    """A model whose labels change, and what renames one of them."""
    uri = tiny_bundle(folder / "m", name="caps", kind="dynamic", classes=CLASSES, size=32)
    options = ServeOptions(
        bundle=uri, threads=1, label_store=str(folder / "l"), label_poll_seconds=0.05
    )
    opened: ServedModel = open_served(options)
    log = open_log(str(folder / "l"), "caps", opened.manifest.classes)

    def rename(label: str, name: str) -> int:
        edit = Rename(label=label, name=name)
        return log.write((edit,), Author("ann", "a test")).number

    border = Border()
    try:
        with served(Site({"tiny": opened}, border)) as server:
            yield Model(server, border), rename
    finally:
        opened.close()


def test_labels_that_change_in_mid_run_have_columns_under_both_names(
    shell: Shell, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "s.parquet"
    with changing_labels(tmp_path) as (model, rename):
        model.border.delay_seconds = 0.05

        def change() -> None:
            wait_for(lambda: model.border.num_images >= 24)
            rename("good", "ok")

        thread = threading.Thread(target=change)
        thread.start()
        ended = shell.run(
            *(images, "--url", model.url, "--output", output, "--scores", "all"),
            *("--batch", 4, "--concurrency", 2),
        )
        thread.join()
    table = pd.read_parquet(output)
    assert set(ended.line["label_revisions"]) == {"0", "1"}
    assert "more than one label revision has answered" in ended.shown
    before, after = table[table["label_revision"] == 0], table[table["label_revision"] == 1]
    assert before["p_good"].notna().all()
    assert before["p_ok"].isna().all()
    assert after["p_ok"].notna().all()
    assert after["p_good"].isna().all()


def test_a_label_revision_that_is_asked_for_is_waited_for(
    shell: Shell, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "s.csv"
    with changing_labels(tmp_path) as (model, rename):
        arguments = (images, "--url", model.url, "--output", output, "--min-revision", 1)
        shown = shell.refused(*arguments, "--patience", 0.5)
        assert "label revision 1 is not in effect here, 0 is" in shown
        threading.Timer(1.0, rename, ("good", "ok")).start()
        ended = shell.run(*arguments, "--resume")
    assert ended.line["label_revisions"] == {"1": NUM_IMAGES}


def test_a_store_that_is_gone_stops_the_run_and_a_missing_image_does_not() -> None:
    item = Item("k", "s3://bucket/a.jpg", "a.jpg")
    gone = Loaded(item, failure=Failure("no answer", "storage"))
    missing = Loaded(item, failure=Failure("no such object", "not_found"))
    streak = Streak()
    for _ in range(MAX_STREAK * 2):
        streak.follow(missing)
    for _ in range(MAX_STREAK - 1):
        streak.follow(gone)
    streak.follow(Loaded(item, b"image"))
    for _ in range(MAX_STREAK - 1):
        streak.follow(gone)
    with pytest.raises(StorageError, match="20 images in a row"):
        streak.follow(gone)


def test_memory_does_not_grow_with_the_number_of_images(bundle: str, tmp_path: Path) -> None:
    """20,000 images take no more than 2,000: the figure is printed."""
    first = tmp_path / "one.jpg"
    first.write_bytes(jpeg(1, size=16))
    for n in range(20_000):
        path = tmp_path / "many" / f"{n // 1000:02}" / f"{n:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(first, path)
    server = Process(bundle)
    server.start()
    peaks: dict[str, int] = {}
    try:
        for name, source in (("2k", tmp_path / "few"), ("20k", tmp_path / "many")):
            if name == "2k":
                source.mkdir()
                for n in range(2000):
                    os.link(first, source / f"{n:05}.jpg")
            program = PROGRAM.replace("ROWS_PER_PART = 16", "ROWS_PER_PART = 2000").replace(
                "sys.exit(main())",
                "main(); import resource as r; print(r.getrusage(r.RUSAGE_SELF).ru_maxrss)",
            )
            command = [sys.executable, "-c", program, str(source), "--url", server.url]
            ended: Any = subprocess.run(
                [*command, "--output", str(tmp_path / f"{name}.parquet"), "--batch", "8"],
                cwd=ROOT, capture_output=True, text=True, check=True,
            )  # fmt: skip
            line, peak = ended.stdout.splitlines()[-2:]
            print(name, line, peak)
            peaks[name] = int(peak)
    finally:
        server.kill()
    print(f"peak memory: {peaks['2k'] / 1024:.0f} MiB, {peaks['20k'] / 1024:.0f} MiB")
    assert peaks["20k"] < peaks["2k"] * 1.15
