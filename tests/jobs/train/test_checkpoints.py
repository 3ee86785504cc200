"""Checkpoints are whole or not there, whatever is killed, damaged or does not answer."""

from __future__ import annotations

import json
import logging
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest
import torch

from jobs.train.checkpoint_writer import CheckpointWriter
from jobs.train.checkpoints import Checkpoints
from jobs.train.snapshot import copy_to_cpu
from models.errors import StorageError
from models.storage import Store, open_store
from tests.conftest import S3Server
from tests.jobs.train.test_loop import Notes, make_config, run
from tests.outages import Outage

ROOT = Path(__file__).parent.parent.parent.parent


def state(number: int) -> dict[str, torch.Tensor]:
    """Return a state that shows whether it is whole."""
    return {"values": torch.full((1000,), float(number)), "number": torch.tensor(number)}


def test_the_last_are_kept_with_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(open_store(tmp_path), keep=3)
    for step in range(10):
        checkpoints.save(state(step), next_epoch=step // 4, next_step=step % 4, is_best=step == 2)
    assert len(list(tmp_path.glob("*.pt"))) == 4
    last, best = checkpoints.load("last"), checkpoints.load("best")
    assert last is not None
    assert best is not None
    assert (int(last["number"]), int(best["number"])) == (9, 2)


def test_the_last_is_the_furthest_on_whoever_wrote_it_latest(tmp_path: Path) -> None:
    """A process that should be dead may write once more after the new one began."""
    checkpoints = Checkpoints(open_store(tmp_path))
    checkpoints.save(state(7), next_epoch=1, next_step=7)
    checkpoints.save(state(3), next_epoch=1, next_step=3)
    found = checkpoints.load_last()
    assert found is not None
    assert found[0].next_step == 7


@pytest.mark.parametrize("suffix", [".pt", ".json"])
@pytest.mark.parametrize("damage", ["cut short", "changed", "gone"])
def test_a_damaged_last_one_falls_back_to_the_one_before(
    tmp_path: Path, suffix: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(open_store(tmp_path))
    for step in (1, 2):
        checkpoints.save(state(step), next_epoch=0, next_step=step)
    (path,) = tmp_path.glob(f"00000-00000002-*{suffix}")
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        half = len(content) // 2
        path.write_bytes(content[:half] + (b"" if damage == "cut short" else b"}" + content[half:]))
    found = checkpoints.load_last()
    assert found is not None
    assert int(found[1]["number"]) == 1
    if (suffix, damage) != (".json", "gone"):  # then it was never there
        assert path.stem in caplog.text
    checkpoints.save(state(3), next_epoch=0, next_step=3)
    assert not path.exists(), "what is damaged does not count among those kept"
    assert len(list(tmp_path.glob("00000-00000001-*.json"))) == 1


def test_a_state_without_its_marker_does_not_count_and_is_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(open_store(tmp_path))
    (tmp_path / "00009-00000000-deadbeef.pt").write_bytes(b"cut")
    (tmp_path / "00009-00000000-deadbeef.pt#1").write_bytes(b"cut")
    assert checkpoints.load("last") is None
    checkpoints.save(state(1), next_epoch=1)
    assert len(list(tmp_path.iterdir())) == 2


@dataclass(frozen=True)
class SlowStore(Store):
    """A bucket that can be closed for a while, or for good."""

    is_open: threading.Event = field(default_factory=threading.Event, compare=False)
    failure: list[str] = field(default_factory=list, compare=False)

    def write(self, key: str, data: bytes) -> None:
        """Wait until it is open."""
        self.is_open.wait(30)
        if self.failure:
            raise StorageError(self.failure[0])
        super().write(key, data)


def test_training_goes_on_while_the_bucket_does_not_answer(tmp_path: Path) -> None:
    store = SlowStore(str(tmp_path))
    ends: list[bool] = []

    class Opener(Notes):
        def step(self, num_images: int, loss: float, waited: float = 0.0) -> None:
            super().step(num_images, loss, waited)
            if self.steps == 20:
                ends.append(store.is_open.is_set())
                store.is_open.set()

    config = make_config(checkpoint={"every_steps": 1})
    run(config, tmp_path, Opener(), store=store)
    assert ends == [False], "20 steps and three ends of epochs without an answer"
    last = Checkpoints(open_store(tmp_path)).find("last")
    assert last is not None
    assert last.next_epoch == 4


def test_the_best_epoch_is_not_lost_while_the_bucket_does_not_answer(tmp_path: Path) -> None:
    store = SlowStore(str(tmp_path))
    with CheckpointWriter(Checkpoints(store)) as writer:
        for epoch in range(1, 6):
            writer.save(state(epoch), next_epoch=epoch, is_best=epoch in (1, 3))
            time.sleep(0.05)  # the first is under way
        store.is_open.set()
    checkpoints = Checkpoints(open_store(tmp_path))
    last, best = checkpoints.load("last"), checkpoints.load("best")
    assert last is not None
    assert best is not None
    assert (int(last["number"]), int(best["number"])) == (5, 3)


def test_a_store_that_refuses_ends_the_run_at_a_later_step_with_its_reason(tmp_path: Path) -> None:
    store = SlowStore(str(tmp_path), failure=["the disk is full"])
    store.is_open.set()

    class Patient(Notes):
        def step(self, num_images: int, loss: float, waited: float = 0.0) -> None:
            super().step(num_images, loss, waited)
            time.sleep(0.02)

    notes = Patient()
    with pytest.raises(StorageError, match="the disk is full"):
        run(make_config(checkpoint={"every_steps": 2}), tmp_path, notes, store=store)
    assert 2 <= notes.steps < 24


def test_what_failed_at_the_very_end_is_told(tmp_path: Path) -> None:
    store = SlowStore(str(tmp_path), failure=["the disk is full"])

    def save_last() -> None:
        with CheckpointWriter(Checkpoints(store)) as writer:
            writer.save(state(1), next_epoch=1)
            store.is_open.set()

    with pytest.raises(StorageError, match="the disk is full"):
        save_last()


def test_a_run_that_fails_tells_its_own_reason_and_the_stores_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SlowStore(str(tmp_path), failure=["the disk is full"])
    store.is_open.set()

    def fail() -> None:
        with CheckpointWriter(Checkpoints(store)) as writer:
            writer.save(state(1), next_epoch=1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert "the disk is full" in caplog.text


def test_a_copy_keeps_what_is_one_as_one_and_changes_no_more() -> None:
    weight = torch.ones(3, 4)
    copy = copy_to_cpu({"a": weight, "b": {"same": weight, "row": weight[0]}, "n": (1, [weight])})
    weight.zero_()
    assert copy["a"].sum() == 12
    assert copy["a"] is copy["b"]["same"] is copy["n"][1][0]
    assert copy["b"]["row"].sum() == 4


WRITER = """
import sys, torch
from jobs.train.checkpoints import Checkpoints
from models.storage import open_store
checkpoints = Checkpoints(open_store(sys.argv[1]))
values = torch.arange(float(sys.argv[2]))
step = 0
print("ready", flush=True)
while True:
    step += 1
    checkpoints.save({"values": values + step, "step": step}, next_epoch=0, next_step=step)
    print(step, flush=True)
"""


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_the_last_one_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten kills (SIGKILL), most of them in the middle of writing 16 MB."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    draw = random.Random(seed)
    caplog.set_level(logging.WARNING)
    for number in range(10):
        folder = tmp_path / str(number)
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), "4e6"],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(draw.uniform(0.1, 0.7))
            process.send_signal(signal.SIGKILL)
            said = [int(line) for line in process.stdout]
        found = Checkpoints(open_store(folder)).load_last()
        told = max(said, default=0)
        if found is None:
            assert told == 0
            continue
        info, whole = found
        assert told <= info.next_step <= told + 1
        assert whole["step"] == info.next_step
        assert float(whole["values"][0]) == info.next_step
        Checkpoints(open_store(folder)).save(whole, next_epoch=1)
        assert len(list(folder.iterdir())) <= 4, "what the kill left is cleared away"
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("left", ["00000-00000001-0a1b2c3d.pt#1", "00000-00000001-0a1b2c3d.json#1"])
def test_what_a_killed_write_left_is_cleared_away(tmp_path: Path, left: str) -> None:
    (tmp_path / left).write_bytes(b"half")
    Checkpoints(open_store(tmp_path)).save(state(2), next_epoch=1)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".pt"]


def test_a_checkpoint_that_is_withdrawn_counts_no_more(tmp_path: Path) -> None:
    checkpoints = Checkpoints(open_store(tmp_path))
    checkpoints.save(state(1), next_epoch=1)
    checkpoints.save(state(2), next_epoch=2, is_best=True)
    last = checkpoints.find("last")
    assert last is not None
    checkpoints.withdraw(last)
    before = checkpoints.find("last")
    assert before is not None
    assert (before.next_epoch, checkpoints.find("best")) == (1, None)
    checkpoints.withdraw(before)
    assert checkpoints.load_last() is None
    assert not list(tmp_path.iterdir())


def test_checkpoints_of_an_older_version_are_refused_and_kept(tmp_path: Path) -> None:
    old = {"path": "epoch-00002.pt", "bytes": 3, "sha256": "0", "next_epoch": 2, "score": 0.5}
    (tmp_path / "last.json").write_text(json.dumps(old))
    (tmp_path / "epoch-00002.pt").write_bytes(b"old")
    checkpoints = Checkpoints(open_store(tmp_path))
    with pytest.raises(StorageError, match=r"of an older version .* another name"):
        checkpoints.load("last")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-00002.pt", "last.json"]


@pytest.mark.slow
def test_a_bucket_that_fails_for_a_while_is_waited_for(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3_server.make_bucket(f"checkpoints-{uuid4().hex[:8]}")
    with Outage.before(s3_server.endpoint) as outage:
        monkeypatch.setenv("AWS_ENDPOINT_URL", outage.endpoint)
        checkpoints = Checkpoints(open_store(f"{uri}/run", is_patient=True))
        checkpoints.save(state(1), next_epoch=1)
        outage.ends = time.monotonic() + 8
        with CheckpointWriter(checkpoints) as writer:
            writer.save(state(2), next_epoch=2)
            time.sleep(4)
            writer.check()
            assert writer.is_busy
        assert time.monotonic() > outage.ends
        assert outage.num_refused > 3
        found = checkpoints.load_last()
        assert found is not None
        assert int(found[1]["number"]) == 2
