"""Runs that are killed or ended and go on, and two runs at once."""

from __future__ import annotations

import signal
from pathlib import Path

import pandas as pd
import pytest

from models.storage import open_store
from tests.conftest import S3Server
from tests.jobs.data.images import jpeg, write
from tests.jobs.score.conftest import CLASSES, NUM_IMAGES, Model, Shell, work_folder
from tests.jobs.score.running import (
    assert_complete,
    kill_after,
    num_parts,
    start,
    stop_at_row,
    wait_until_idle,
)

pytestmark = pytest.mark.slow  # runs are killed in real time


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_run_that_is_killed_goes_on_without_losing_or_repeating_a_row(
    model: Model, shell: Shell, images: Path, tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"s.{suffix}"
    model.border.delay_seconds = 0.1
    arguments = (images, "--url", model.url, "--output", output, "--batch", 4)
    for parts in (2, 4):  # killed twice
        kill_after(parts, output, *arguments, *(["--resume"] if parts > 2 else []))
    assert not output.exists()
    kept = 16 * num_parts(output)
    model.border.delay_seconds = 0
    wait_until_idle(model)
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
    arguments = (images, "--url", model.url, "--output", output, "--batch", 5)
    # Answers come five at a time: 20 are a part, and it ends with the sixth of them, or before it.
    job = stop_at_row(30, *arguments)
    job.send_signal(signal.SIGTERM)
    job.send_signal(signal.SIGCONT)
    _, err = job.communicate(timeout=30)
    assert job.returncode == 130
    assert "go on with --resume" in err
    ended = shell.run(*arguments, "--resume")
    assert ended.line["num_resumed"] in (25, 30)  # more than the full part
    assert_complete(output, images)


def test_a_part_that_cannot_be_read_is_scored_again(
    model: Model, shell: Shell, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "s.parquet"
    model.border.delay_seconds = 0.1
    arguments = (images, "--url", model.url, "--output", output, "--batch", 4)
    kill_after(3, output, *arguments)
    part = min((work_folder(output) / "parts").iterdir())
    part.write_bytes(part.read_bytes()[:100])
    number = num_parts(output)
    model.border.delay_seconds = 0
    ended = shell.run(*arguments, "--resume")
    assert f"1 of {number} parts of the unfinished run in" in ended.shown
    table = pd.read_parquet(output)
    assert sorted(table["path"]) == sorted(str(path) for path in images.iterdir())


WRITING, REMOVING, RELEASING = (
    "jobs.score.output.os.fsync",
    "jobs.score.run.remove",
    "jobs.score.run.let_go",
)


def die_at(where: str, *arguments: object) -> None:
    """Run the command to a place at which it is gone."""
    job = start(*arguments, dies_at=where)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 9, err


@pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
def test_an_output_that_was_begun_when_the_run_was_killed_is_not_left_behind(
    model: Model, shell: Shell, images: Path, tmp_path: Path, flag: str
) -> None:
    output = tmp_path / "s.parquet"
    arguments = (images, "--url", model.url, "--output", output)
    die_at(WRITING, *arguments)
    (begun,) = work_folder(output).glob("output-*")
    (work_folder(output) / "parts" / "0001-ab-000000.parquet#1").write_bytes(b"half")
    assert (begun / "s.parquet").stat().st_size
    assert not output.exists()
    ended = shell.run(*arguments, flag)
    assert ended.line["num_resumed"] == (NUM_IMAGES if flag == "--resume" else 0)
    assert_complete(output, images)


@pytest.mark.parametrize("where", [REMOVING, RELEASING])
@pytest.mark.parametrize("flag", ["", "--resume", "--overwrite"])
def test_what_a_run_left_that_was_killed_behind_its_output_is_removed_by_the_next(
    model: Model, shell: Shell, images: Path, tmp_path: Path, where: str, flag: str
) -> None:
    output = tmp_path / "s.parquet"
    arguments = (images, "--url", model.url, "--output", output)
    die_at(where, *arguments)
    assert output.exists()
    assert work_folder(output).exists()
    if flag:
        ended = shell.run(*arguments, flag)
        assert ended.status == 0
        assert bool(ended.line.get("is_finished_before")) == (flag == "--resume")
    else:
        assert "exists already" in shell.refused(*arguments)
    assert_complete(output, images)


@pytest.mark.parametrize("where", [REMOVING, RELEASING])
def test_nothing_is_left_behind_in_a_bucket_either(
    model: Model, shell: Shell, images: Path, s3_server: S3Server, where: str
) -> None:
    store = open_store(s3_server.make_bucket(f"left-{where.rpartition('.')[2].replace('_', '-')}"))
    arguments = (images, "--url", model.url, "--output", f"{store.uri}/s.parquet")
    die_at(where, *arguments)
    assert len(list(store.list())) > 1
    assert shell.run(*arguments, "--resume").line["is_finished_before"]
    assert [entry.key for entry in store.list()] == ["s.parquet"]


def test_a_run_that_was_killed_while_it_replaced_an_output_does_it_once_more(
    model: Model, shell: Shell, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "s.parquet"
    arguments = (images, "--url", model.url, "--output", output)
    output.write_bytes(b"of last week")
    die_at(WRITING, *arguments, "--overwrite")
    assert output.read_bytes() == b"of last week"
    assert shell.run(*arguments, "--resume").line["num_resumed"] == NUM_IMAGES
    assert_complete(output, images)


def test_an_unfinished_run_outlives_a_file_that_others_put_in_its_place(
    model: Model, shell: Shell, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "s.parquet"
    model.border.delay_seconds = 0.1
    arguments = (images, "--url", model.url, "--output", output, "--batch", 4)
    kill_after(2, output, *arguments)
    kept = num_parts(output)
    output.write_bytes(b"of somebody else")
    assert "exists already" in shell.refused(*arguments)
    assert num_parts(output) == kept
    output.unlink()
    model.border.delay_seconds = 0
    assert shell.run(*arguments, "--resume").line["num_resumed"] == 16 * kept


def test_a_journal_that_is_damaged_can_be_begun_anew(
    model: Model, shell: Shell, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "s.parquet"
    arguments = (images, "--url", model.url, "--output", output)
    die_at(WRITING, *arguments)
    (work_folder(output) / "run.json").write_bytes(b"{")
    assert "begin anew with --overwrite" in shell.refused(*arguments, "--resume")
    assert shell.run(*arguments, "--overwrite").status == 0
    assert_complete(output, images)


def test_rows_that_failed_by_the_servers_fault_are_tried_again(
    model: Model, shell: Shell, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "s.parquet"
    model.border.poison = b"POISON"
    bad = images / "0000.jpg"
    bad.write_bytes(bad.read_bytes() + b"POISON")
    model.border.delay_seconds = 0.1
    arguments = (images, "--url", model.url, "--output", output, "--batch", 4)
    kill_after(2, output, *arguments)
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
    kill_after(2, output, *arguments)
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
    arguments = (images, "--url", model.url, "--output", output, "--batch", 4)
    job = stop_at_row(20, *arguments)
    shown = shell.refused(*arguments, flag)
    assert f"another run (process {job.pid} on" in shown
    job.send_signal(signal.SIGCONT)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 0, err
    assert_complete(output, images)
