"""`python -m jobs.score SOURCE DEST --bundle B`: scoring without a server, by workers on Ray."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.session import Session
from jobs.score import crew
from jobs.score.answer import Answer
from jobs.score.columns import Columns
from jobs.score.items import Item
from jobs.score.reading import Failure
from models.bundle import open_bundle
from models.engines.base import EngineOptions
from models.errors import StorageError
from models.label_edits import Hide, Rename
from models.label_log import open_log
from models.label_revision import Author
from models.predictor import open_predictor
from models.storage import open_store
from tests.bundles import tiny_bundle
from tests.conftest import S3Server
from tests.jobs.data.images import BROKEN, class_files, jpeg, write
from tests.jobs.score.conftest import CLASSES, NUM_IMAGES, Model, Shell, work_folder
from tests.jobs.score.containers import write_packed, write_tars
from tests.jobs.score.running import (
    assert_complete,
    kill_at_row,
    num_parts,
    start,
    stop_at_row,
    wait_for,
    wait_for_parts,
)
from tests.jobs.score.test_worker import job as job_of
from tests.peak import peak
from tests.raylet import SCORER, session_workers
from tests.submission import submit

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("on_ray")]


def wait_until_nothing_comes(output: Path, job: subprocess.Popen[str]) -> None:
    """Wait until a run that goes on has written no part for a second."""
    number, since = -1, 0.0
    while time.monotonic() - since < 1:
        assert job.poll() is None, job.communicate()
        if num_parts(output) != number:
            number, since = num_parts(output), time.monotonic()
        time.sleep(0.05)


def without_times(output: Path) -> pa.Table:
    """Return the rows but for the one column in which the two ways differ."""
    return pq.read_table(output).drop_columns(["milliseconds"])


def digest(output: Path) -> str:
    """Return what identical outputs have in common."""
    return hashlib.sha256(output.read_bytes()).hexdigest()


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """So many images that a run can be killed in the middle; one in twenty is broken."""
    folder = tmp_path / "many"
    made = [tmp_path / f"{n}.jpg" for n in range(40)]
    for n, path in enumerate(made):
        path.write_bytes(jpeg(n) if n % 20 else BROKEN["truncated.jpg"])
    for n in range(3000):
        link = folder / f"{n // 1000}" / f"{n:05}.jpg"
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(made[n % 40], link)
    return folder


@pytest.mark.parametrize("scores", ["top", "all", "none"])
def test_a_bundle_gives_the_rows_that_the_served_model_gives(
    model: Model, bundle: str, shell: Shell, tmp_path: Path, scores: str
) -> None:
    write(tmp_path / "images", class_files({"good": 40, "torn": 40}) | BROKEN)
    (tmp_path / "images" / "gone.jpg").symlink_to("nowhere")
    served, own = tmp_path / "served.parquet", tmp_path / "own.parquet"
    arguments = ("--scores", scores, "--embeddings", "--truth")
    failing = ("--max-failed-share", 1)
    by_server = shell.run(
        tmp_path / "images", "--url", model.url, "--output", served, *arguments, *failing
    )
    ended = shell.run(tmp_path / "images", own, "--bundle", bundle, *arguments, *failing)
    assert ended.status == by_server.status == 0
    for name in ("num_images", "failures", "labels", "versions", "accuracy", "label_revisions"):
        assert ended.line[name] == by_server.line[name]
    expected, found = without_times(served), without_times(own)
    assert set(found.column_names) == set(expected.column_names)
    assert found.select(expected.column_names).equals(expected)
    assert pq.read_table(own)["milliseconds"].null_count == 84
    assert not work_folder(own).exists()


def test_the_labels_of_a_store_count_as_they_were_when_the_run_began(
    shell: Shell, many: Path, tmp_path: Path
) -> None:
    bundle = tiny_bundle(tmp_path / "m", name="caps", kind="dynamic", classes=CLASSES, size=32)
    manifest = open_bundle(bundle).manifest
    log = open_log(str(tmp_path / "labels"), "caps", manifest.classes)
    arguments = (many, tmp_path / "s.parquet", "--bundle", bundle, "--max-failed-share", 1)
    own = shell.run(*arguments)
    assert own.line["label_revisions"] == {"0": 3000}
    edits = (Rename(label="good", name="fine"), Hide(label="torn"))
    log.write(edits, Author("ann", "a test"))
    (tmp_path / "s.parquet").unlink()
    labels = ("--labels", tmp_path / "labels")
    shown = shell.refused(*arguments, *labels, "--min-revision", 2)
    assert "label revision 2 is not in effect, 1 is" in shown
    job = start(*arguments, *labels, "--min-revision", 1, chunk=8)
    wait_for_parts(tmp_path / "s.parquet", 2, job)
    job.kill()
    job.communicate()
    log.write((Rename(label="good", name="perfect"),), Author("ann", "a test"))
    ended = shell.run(*arguments, *labels, "--resume")
    assert ended.line["label_revisions"] == {"1": 3000}
    expected = {
        {"good": "fine", "torn": "unknown"}.get(label, label): count
        for label, count in own.line["labels"].items()
    }
    assert ended.line["labels"] == expected
    assert set(expected) >= {"fine", "unknown"}
    table = pq.read_table(tmp_path / "s.parquet")
    assert table["label_revision"].drop_null().unique().to_pylist() == [1]


def test_an_embedding_model_gives_vectors(
    bundle: str, shell: Shell, images: Path, tmp_path: Path
) -> None:
    uri = tiny_bundle(tmp_path / "m", kind="embedding", name="tiny-embedding", size=32)
    ended = shell.run(images, tmp_path / "s.parquet", "--bundle", uri)
    assert ended.status == 0
    table = pq.read_table(tmp_path / "s.parquet")
    assert "label" not in table.column_names
    predictor = open_predictor(open_bundle(uri), EngineOptions(threads=1))
    rows = zip(table["path"].to_pylist(), table["embedding"].to_pylist(), strict=True)
    for path, embedding in rows:
        image = predictor.prepare(Path(path).read_bytes())
        assert np.array_equal(predictor.predict(image[None]).embedding[0], np.float32(embedding))
    predictor.close()


@pytest.mark.parametrize("kind", ["packed", "tars", "manifest"])
@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_every_kind_of_source_gives_the_same_answers(
    s3_server: S3Server, bundle: str, shell: Shell, tmp_path: Path, kind: str, place: str
) -> None:
    files = class_files({"good": 30, "torn": 30})
    write(tmp_path / "images", files)
    shell.run(tmp_path / "images", tmp_path / "a.parquet", "--bundle", bundle, "--truth")
    source = tmp_path / "source"
    if kind == "packed":
        write_packed(source, files)
    elif kind == "tars":
        write_tars(source, files)
    else:
        write(source, files | {"list.csv": "\n".join(["path", *files]).encode()})
    root, output = str(source), str(tmp_path / "b.parquet")
    if place == "bucket":
        root = s3_server.make_bucket(f"own-{kind}")
        output = f"{root}/scores/s.parquet"
        found = [path for path in source.rglob("*") if path.is_file()]
        write(open_store(root), {str(p.relative_to(source)): p.read_bytes() for p in found})
    uri = f"{root}/list.csv" if kind == "manifest" else root
    ended = shell.run(uri, output, "--bundle", bundle)
    assert (ended.status, ended.line.get("num_scored")) == (0, 60), ended
    if place == "bucket":
        (tmp_path / "b.parquet").write_bytes(open_store(root).read("scores/s.parquet"))
    one, two = pq.read_table(tmp_path / "a.parquet"), pq.read_table(tmp_path / "b.parquet")
    for name in ("label", "confidence", "label_2", "probability_3"):
        assert one[name].equals(two[name])


def test_the_number_of_workers_does_not_show_in_the_output(
    bundle: str, shell: Shell, images: Path, tmp_path: Path
) -> None:
    digests = set()
    for count in (1, 3):
        output = tmp_path / f"{count}.parquet"
        shell.run(images, output, "--bundle", bundle, "--workers", count, "--threads", 1)
        digests.add(digest(output))
    assert len(digests) == 1


def test_a_run_that_is_killed_anywhere_ends_with_the_same_bytes(
    bundle: str, shell: Shell, many: Path, tmp_path: Path
) -> None:
    whole, output = tmp_path / "whole.parquet", tmp_path / "s.parquet"
    how = ("--bundle", bundle, "--embeddings", "--max-failed-share", 1)
    shell.run(many, whole, *how)
    chance = random.Random(os.environ.get("SEED", "7"))
    at_least = 0
    for attempt in range(3):
        row = chance.randrange(100, 900)
        kill_at_row(row, many, output, *how, *(["--resume"] if attempt else []), chunk=8)
        at_least += (row - 8) // 16 * 16  # but for the rows of a part that was not full
    ended = shell.run(many, output, *how, "--resume")
    assert ended.status == 0
    assert at_least <= ended.line["num_resumed"] < 3000
    assert digest(output) == digest(whole)
    assert not work_folder(output).exists()


def test_workers_that_are_killed_cost_nothing(
    bundle: str, shell: Shell, many: Path, tmp_path: Path, ray_session: Session
) -> None:
    whole, output = tmp_path / "whole.parquet", tmp_path / "s.parquet"
    how = ("--bundle", bundle, "--max-failed-share", 1, "--workers", 2, "--threads", 1)
    shell.run(many, whole, *how)
    job = start(many, output, *how, chunk=8)
    for wanted in (2, 60):
        wait_for_parts(output, wanted, job)
        victim = session_workers(ray_session, SCORER)[0]
        # What it was given is not finished any more: the others run until all wait for that.
        victim.suspend()
        wait_until_nothing_comes(output, job)
        victim.kill()
    out, err = job.communicate(timeout=60)
    assert job.returncode == 0, err
    assert "another one takes over" in err
    assert '"num_retries": 2' in out
    assert digest(output) == digest(whole)


class Poisoned(crew._RayWorker):
    """A worker whose process dies of one image, as of a decoder that crashes."""

    def score(self, items: Any) -> pa.Table:
        """Score, or die."""
        if any(item.path.endswith("0033.jpg") for item in items):
            os._exit(1)
        return super().score(items)


def test_an_image_that_workers_die_of_costs_one_row(
    bundle: str, shell: Shell, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "_RayWorker", Poisoned)
    monkeypatch.setattr(crew, "IMAGES_PER_CHUNK", 4)
    ended = shell.run(images, tmp_path / "s.parquet", "--bundle", bundle)
    assert ended.line["failures"] == {"worker_failed": 1}
    table = pq.read_table(tmp_path / "s.parquet")
    assert table["path"].to_pylist() == sorted(str(path) for path in images.iterdir())
    assert table["code"][33].as_py() == "worker_failed"


class Doomed(crew._RayWorker):
    """A worker whose process dies of every image."""

    def score(self, items: Any) -> pa.Table:
        """Die."""
        os._exit(1)


def test_workers_that_die_of_everything_end_the_run(
    bundle: str, shell: Shell, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "_RayWorker", Doomed)
    monkeypatch.setattr(crew, "MAX_DEATHS", 3)
    shown = shell.refused(images, tmp_path / "s.parquet", "--bundle", bundle)
    assert "workers have died 3 times with nothing finished in between" in shown


def test_what_keeps_a_model_from_running_is_said_as_it_is(
    shell: Shell, images: Path, tmp_path: Path
) -> None:
    bundle = tiny_bundle(tmp_path / "m", classes=CLASSES, size=48)  # of no other test: not cached
    artifact = Path(bundle) / "model.onnx"
    artifact.write_bytes(artifact.read_bytes()[:-1] + b"x")
    shown = shell.refused(images, tmp_path / "s.parquet", "--bundle", bundle)
    assert "DigestError" in shown or "SHA-256" in shown
    assert "Traceback" not in shown
    shown = shell.refused(images, tmp_path / "s.parquet", "--bundle", bundle, "--device", "cuda")
    assert "no machine of this Ray has a GPU" in shown
    assert not work_folder(tmp_path / "s.parquet").exists()  # nothing to go on with


def test_a_run_that_is_ended_keeps_what_it_has_and_leaves_no_worker(
    bundle: str, shell: Shell, many: Path, tmp_path: Path, ray_session: Session
) -> None:
    output = tmp_path / "s.parquet"
    how = ("--bundle", bundle, "--max-failed-share", 1)
    job = start(many, output, *how, chunk=8)
    wait_for_parts(output, 2, job)
    job.send_signal(signal.SIGTERM)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 130, err
    assert "go on with --resume" in err
    wait_for(lambda: not session_workers(ray_session, SCORER), 30)
    ended = shell.run(many, output, *how, "--resume")
    assert 0 < ended.line["num_resumed"] < 3000
    assert pq.read_table(output)["path"].to_pylist() == sorted(map(str, many.rglob("*.jpg")))


def test_the_second_of_two_runs_on_one_output_is_refused(
    bundle: str, shell: Shell, many: Path, tmp_path: Path
) -> None:
    output = tmp_path / "s.parquet"
    how = ("--bundle", bundle, "--max-failed-share", 1)
    job = stop_at_row(100, many, output, *how, chunk=8)
    shown = shell.refused(many, output, "--bundle", bundle, "--resume")
    assert f"another run (process {job.pid} on" in shown
    job.send_signal(signal.SIGCONT)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 0, err


def test_a_run_goes_on_with_the_same_bundle_and_the_same_way_only(
    model: Model, bundle: str, shell: Shell, many: Path, tmp_path: Path
) -> None:
    output = tmp_path / "s.parquet"
    job = start(many, output, "--bundle", bundle, chunk=8)
    wait_for_parts(output, 1, job)
    job.kill()
    job.communicate()
    shown = shell.refused(many, output, "--url", model.url, "--resume")
    assert "bundle was 'tiny/1" in shown
    other = tiny_bundle(tmp_path / "m", classes=CLASSES, size=64)
    shown = shell.refused(many, output, "--bundle", other, "--resume")
    assert "bundle was 'tiny/1" in shown
    assert not list(tmp_path.glob("*.parquet"))


def test_a_store_that_fails_stops_the_run(bundle: str) -> None:
    columns = Columns(False, True, "none", 1, 0)
    items = [Item(f"{n}", f"s3://bucket/{n}.jpg", f"{n}.jpg") for n in range(12)]
    hands = crew.Crew(job_of(bundle, columns=columns), crew.Size(1, 1))

    def chunk(code: str | None) -> crew._Chunk:
        failure = Failure("no answer", code) if code else None
        table = columns.to_table([Answer(item, failure=failure) for item in items])
        return crew._Chunk(items, table=table)

    for code in ("not_found", "storage", None, "storage"):
        hands._watched(chunk(code))
    with pytest.raises(StorageError, match="20 images in a row"):
        hands._watched(chunk("storage"))


def test_a_job_that_is_submitted_scores_on_the_workers_of_the_cluster(
    bundle: str, images: Path, tmp_path: Path, ray_session: Session
) -> None:
    words = [sys.executable, "-m", "jobs.score", images, tmp_path / "s.parquet", "--bundle", bundle]
    done = submit(ray_session, [*map(str, words)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f'"num_scored": {NUM_IMAGES}' in done.stdout
    assert_complete(tmp_path / "s.parquet", images)


def test_memory_does_not_grow_with_the_number_of_images(
    bundle: str, tmp_path: Path, ray_session: Session
) -> None:
    """20,000 images take no more than 2,000, in the command and in its workers; it is printed."""
    first = tmp_path / "one.jpg"
    first.write_bytes(jpeg(1, size=16))
    peaks: dict[int, list[float]] = {}
    for count in (2000, 20_000):
        folder = tmp_path / str(count)
        for n in range(count):
            link = folder / f"{n // 1000:02}" / f"{n:05}.jpg"
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(first, link)
        # A group of the output is held, of up to 50,000 rows: here as few as in a part.
        command = (folder, tmp_path / f"{count}.parquet", "--bundle", bundle)
        job = start(*command, part=2000, group=2000)
        peaks[count] = [0, 0]
        while job.poll() is None:
            workers = (worker.pid for worker in session_workers(ray_session, SCORER))
            for place, pid in enumerate([job.pid, *workers][:2]):
                with suppress(OSError):  # gone meanwhile
                    peaks[count][place] = max(peaks[count][place], peak(pid))
            time.sleep(0.05)
        assert job.returncode == 0
    print(f"peak MiB of the command and of a worker: {peaks}")
    for few, many in zip(peaks[2000], peaks[20_000], strict=True):
        assert 0 < many < few * 1.15
