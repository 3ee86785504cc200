"""How a run is watched: the pace, the bar, metrics.jsonl, the board between workers and driver."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from rich.console import Console

from jobs.console import bar
from jobs.lease import acquire
from jobs.train.audience import Audience
from jobs.train.bar import BarWatcher
from jobs.train.board import Board, BoardWatcher, News, follow
from jobs.train.borders import NotFiniteError, Notice, Place, Status, StoppedError, Watcher
from jobs.train.frozen import _step
from jobs.train.history import EpochRecord
from jobs.train.metrics_log import MetricsLog
from jobs.train.position import Tally
from jobs.train.stop import StopRequest
from models.errors import ConfigError
from models.storage import open_store
from tests.jobs.train.test_loop import make_config, run
from tests.jobs.train.test_resume import Killer

PAIR = Place(torch.device("cpu"), 0, 2)
RECORD = EpochRecord(0, 0.5, {"accuracy": 0.9}, 100.0, 0.1)


@dataclass
class Shown(Watcher):
    """Keeps what it is shown."""

    statuses: list[Status] = field(default_factory=list)
    records: list[EpochRecord] = field(default_factory=list)
    asked: Notice | None = None

    def show(self, status: Status) -> None:
        """Keep it."""
        self.statuses.append(status)

    def epoch(self, record: EpochRecord) -> None:
        """Keep it."""
        self.records.append(record)

    def notice(self) -> Notice | None:
        """Return what the test wants."""
        return self.asked


def test_the_pace_is_that_of_all_workers_over_the_last_steps() -> None:
    shown = Shown()
    audience = Audience([shown], PAIR)
    audience.begin(Tally(1, step=2, world=2), 64, 640)
    assert shown.statuses[-1].is_past
    assert (shown.statuses[-1].done, shown.statuses[-1].total) == (64, 640)
    started = time.monotonic()
    for step in range(20):
        time.sleep(0.01)
        audience.step(8, float(step % 2), waited=0.005)
    seconds = time.monotonic() - started
    status = audience.status()
    assert status.done == 64 + 20 * 8 * 2
    assert status.epoch == 1
    assert status.loss == pytest.approx(0.5)
    assert status.images_per_second == pytest.approx(20 * 16 / seconds, rel=0.2)
    assert status.waiting_share == pytest.approx(20 * 0.005 / seconds, rel=0.2)
    assert len(shown.statuses) < 10, "not one call per step"


def test_the_bar_shows_loss_speed_waiting_and_goes_back_after_a_kill(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=160)
    lease = acquire(open_store(tmp_path), "run")
    with bar(console, "training", 100) as advance:
        watcher = BarWatcher(console, advance, lease, StopRequest(), quiet_epochs=False)
        watcher.show(Status(0, 40, 1000, float("nan"), 0, 0, is_past=True))
        watcher.show(Status(0, 80, 1000, 0.1234, 250.0, 0.03))
        watcher.epoch(RECORD)
        watcher.show(Status(0, 60, 1000, 0.1234, 250.0, 0.03))
    lease.release(forget=True)
    text = out.getvalue()
    assert "loss 0.123, 250/s, waiting 3%" in text
    assert "60/1000" in text
    assert "80/1000" not in text.rpartition("60/1000")[2]
    assert "epoch 1: train loss 0.5000" in text


def test_a_log_file_says_how_much_time_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jobs.console.SECONDS_BETWEEN_LINES", 0.0)
    out = io.StringIO()
    with bar(Console(file=out, width=160), "training", 100) as advance:
        advance(500, 1000, is_past=True)
        time.sleep(0.1)
        advance(10, 1000, note="loss 0.1")
    first = out.getvalue().splitlines()[1]
    assert first.startswith("training: 510 of 1,000")
    assert "loss 0.1" in first
    left = float(first.rpartition(", ")[2].removesuffix(" s left"))
    assert left >= 4, "10 images in 0.1 s: what an earlier run did says nothing of the speed"


def read_lines(folder: Path) -> list[dict[str, float]]:
    """Return the lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_metrics_are_written_per_steps_and_per_epoch(tmp_path: Path) -> None:
    log = MetricsLog(open_store(tmp_path), every_steps=2, world=2)
    for loss in (1.0, 3.0, 5.0):
        log.step(8, loss, 0.0)
    log.epoch(RECORD)
    log.step(8, float("nan"))  # features
    log.step(8, 7.0)
    log.close()
    first, second = read_lines(tmp_path)
    assert (first["epoch"], first["step"], first["loss"]) == (1, 2, 2.0)
    assert (second["epoch"], second["train_loss"], second["validation_accuracy"]) == (1, 0.5, 0.9)


def test_metrics_of_a_run_that_was_killed_have_each_line_once(tmp_path: Path) -> None:
    config = make_config(checkpoint={"every_steps": 4})
    places = []
    for name, kills in (("whole", []), ("cut", [7, 9])):
        for at in [*kills, 0]:
            log = MetricsLog(open_store(tmp_path / name), every_steps=2, world=1)
            killer = Killer(at=at)
            audience = Audience([log, killer], Place(torch.device("cpu")))
            try:
                run(config, tmp_path / name / "checkpoints", audience)  # type: ignore[arg-type]
            except KeyboardInterrupt:
                pass
            finally:
                log.close()
        lines = read_lines(tmp_path / name)
        places.append([(line["epoch"], line.get("step")) for line in lines])
    assert places[0] == places[1]
    assert len(places[0]) == 4 * 3 + 4


def test_an_attempt_that_fails_before_its_first_step_keeps_the_lines_of_the_others(
    tmp_path: Path,
) -> None:
    log = MetricsLog(open_store(tmp_path), every_steps=1, world=1)
    log.step(8, 1.0)
    log.close()
    MetricsLog(open_store(tmp_path), every_steps=1, world=1).close()
    assert len(read_lines(tmp_path)) == 1


def test_a_store_that_refuses_metrics_ends_no_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    log = MetricsLog(open_store(tmp_path / "file" / "run"), every_steps=1, world=1)
    log.step(8, 1.0)
    log.close()
    assert "metrics.jsonl is not up to date" in caplog.text


def test_the_board_gives_each_epoch_once_though_it_was_trained_twice() -> None:
    board = Board()
    board.report(None, [RECORD])
    assert board.look().records == [RECORD]
    board.report(Status(0, 1, 2, 0.0, 0.0, 0.0), [RECORD])
    assert board.look().records == []
    assert board.look() == News()


def test_a_worker_and_the_driver_tell_each_other_through_the_board(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jobs.train.board.SECONDS_BETWEEN", 0.01)
    board, driver = Board(), Shown()
    worker = BoardWatcher(board.report, draining=lambda: None)
    left = iter(range(1000))
    deadline = time.monotonic() + 5

    def is_running() -> bool:
        if next(left) == 1:
            worker.show(Status(0, 8, 80, 0.4, 10.0, 0.0))
            worker.epoch(RECORD)
            driver.asked = Notice("SIGTERM", ends=True)
        return worker.notice() is None and time.monotonic() < deadline

    follow(board.look, board.ask, is_running, driver)
    assert worker.notice() == Notice("SIGTERM", ends=True)
    worker.close()
    assert [status.done for status in driver.statuses] == [8]
    assert driver.records == [RECORD]


def test_what_fails_for_good_is_raised_without_waiting_for_more_attempts() -> None:
    board = Board()
    board.fail(NotFiniteError("the loss is nan"))
    board.fail(ConfigError("a later one"))
    with pytest.raises(NotFiniteError, match="the loss is nan"):
        follow(board.look, board.ask, lambda: True, Shown())


def test_workers_that_do_not_answer_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.train.board.SECONDS_BETWEEN", 0.01)
    monkeypatch.setattr("jobs.train.board.SECONDS_TO_STOP", 0.1)
    board = Board()
    with pytest.raises(StoppedError, match="no worker has answered"):
        follow(board.look, board.ask, lambda: True, Shown(asked=Notice("SIGTERM", ends=True)))


@pytest.mark.slow
def test_workers_that_write_a_checkpoint_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store may be tried for minutes, and the driver's end is theirs."""
    monkeypatch.setattr("jobs.train.board.SECONDS_BETWEEN", 0.01)
    monkeypatch.setattr("jobs.train.board.SECONDS_TO_STOP", 2.0)
    board, driver = Board(), Shown(asked=Notice("SIGTERM", ends=True))
    worker = BoardWatcher(board.report, draining=lambda: None)
    until: list[float] = []

    def is_running() -> bool:
        if not until and worker.notice() is not None:
            until.append(time.monotonic() + 3.0)
        return not until or time.monotonic() < until[0]

    follow(board.look, board.ask, is_running, driver)
    worker.close()
    monkeypatch.setattr("jobs.train.board.SECONDS_TO_WRITE", 0.3)
    with pytest.raises(StoppedError, match=r"its checkpoint was not written within 0\.3 s"):
        follow(board.look, board.ask, lambda: True, driver)


def test_where_a_run_began_is_told_before_what_it_has_done_since() -> None:
    """Else what an earlier attempt did counts as speed, and the time left is far too short."""
    past = Status(0, 400, 1000, float("nan"), 0.0, 0.0, is_past=True)
    now, later = (Status(0, done, 1000, 0.4, 10.0, 0.0) for done in (408, 416))
    board = Board()
    worker = BoardWatcher(board.report, draining=lambda: None)
    for status in (past, now):
        worker.show(status)
    worker.close()
    board.report(later, [])
    assert board.look().status == past
    board.report(later, [])
    assert board.look().status == later


def test_a_watcher_that_raises_has_the_workers_end() -> None:
    class Lost(Watcher):
        def notice(self) -> Notice | None:
            raise ConfigError("another run has taken over")

    board = Board()
    with pytest.raises(ConfigError, match="taken over"):
        follow(board.look, board.ask, lambda: True, Lost())
    asked = board.report(None, [])
    assert asked is not None
    assert asked.ends


def test_whoever_ends_the_watching_ends_the_workers() -> None:
    class Ended(Watcher):
        def epoch(self, record: EpochRecord) -> None:
            raise SystemExit(0)  # as Ray Tune ends a trial

    board = Board()
    board.report(None, [RECORD])
    with pytest.raises(SystemExit):
        follow(board.look, board.ask, lambda: True, Ended())
    asked = board.report(None, [])
    assert asked is not None
    assert asked.ends


def test_a_node_that_goes_away_is_told_once() -> None:
    worker = BoardWatcher(Board().report, draining=lambda: "node 12 goes away")
    assert worker.notice() == Notice("node 12 goes away", ends=False)
    assert worker.notice() is None
    worker.close()


def test_sigterm_is_a_request_first_and_the_end_then() -> None:
    ended: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    try:
        stop = StopRequest()
        with stop.listening():
            assert stop.notice() is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.notice() == Notice("SIGTERM", ends=True)
            assert ended == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert ended == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(ended) == 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_features_are_left_at_the_next_batch_when_the_run_is_to_end() -> None:
    watcher = Shown()
    _step(watcher, 64)
    watcher.asked = Notice("a node goes away", ends=False)
    _step(watcher, 64)
    watcher.asked = Notice("SIGTERM", ends=True)
    with pytest.raises(StoppedError, match=r"features were computed, because of SIGTERM"):
        _step(watcher, 64)
