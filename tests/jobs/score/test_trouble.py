"""Scoring while the server fails: full queues, refusals, restarts, a store that is gone."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pandas as pd
import pytest

from jobs.score import patience
from jobs.score.items import Item
from jobs.score.reading import MAX_STREAK, Failure, Loaded, Streak
from models.errors import StorageError
from tests.jobs.data.images import jpeg, write
from tests.jobs.score.conftest import NUM_IMAGES, Model, Shell
from tests.jobs.score.running import assert_complete, num_parts, start, wait_for
from tests.jobs.score.serving import Process

pytestmark = pytest.mark.slow  # most wait for something in real time


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
