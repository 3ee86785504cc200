"""Moments of a job that was left alone are found again in one that goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clock import Clock
from tests.faults.data import timeline as timeline_module
from tests.faults.data.kinds import Kill, digest_of
from tests.faults.data.table import Row
from tests.faults.data.timeline import LOOK_SECONDS, Timeline


def test_a_moment_is_so_long_after_the_last_part_before_it() -> None:
    timeline = Timeline([1.0, 1.5, 4.0], 5.0)
    assert timeline.locate(0.25) == (0, 0.25)
    assert timeline.locate(3.5) == (2, 2.0)
    assert timeline.locate(4.75) == (3, 0.75)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that a timeline reads."""
    clock = Clock()
    monkeypatch.setattr(timeline_module, "time", clock)
    return clock


def test_a_watched_job_has_the_time_of_each_part(clock: Clock) -> None:
    timeline = Timeline.watched(
        lambda: int((clock.now - 100) / 0.1 + 1e-6), lambda: clock.now >= 100.35
    )
    assert timeline.parts == pytest.approx([0.1, 0.2, 0.3], abs=2 * LOOK_SECONDS)
    assert timeline.end == pytest.approx(0.35, abs=2 * LOOK_SECONDS)


def test_waiting_begins_with_the_part_that_is_there_already_and_ends_with_the_job(
    clock: Clock,
) -> None:
    timeline = Timeline([1.0, 1.5], 5.0)
    assert timeline.wait(1.6, lambda: 7, lambda: False)
    assert clock.now == pytest.approx(100.1, abs=2 * LOOK_SECONDS)
    assert timeline.wait(1.6, lambda: int(clock.now - 100), lambda: False)  # the second one at 102
    assert clock.now == pytest.approx(102.1, abs=2 * LOOK_SECONDS)
    assert not timeline.wait(1.6, lambda: 0, lambda: True)
    assert not timeline.wait(4.9, lambda: 2, lambda: clock.now > 102.4)


def test_any_other_byte_name_or_file_is_another_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    digests = [digest_of(tmp_path)]
    (tmp_path / "a").write_bytes(b"2")
    digests.append(digest_of(tmp_path))
    (tmp_path / "b").touch()
    digests.append(digest_of(tmp_path))
    (tmp_path / "b").rename(tmp_path / "c")
    digests.append(digest_of(tmp_path))
    assert len(set(digests)) == 4


def test_a_row_says_when_and_how_it_ended() -> None:
    timeline = Timeline([1.0], 10.8)
    kills = [Kill(0.4, 0), Kill(8.42, 11)]
    assert str(Row("pack", timeline, kills, is_same=True)).split() == [
        *("pack", "2", "10.8", "same", "0.4:0", "8.4:11")
    ]
    assert "OTHERS" in str(Row("pack", timeline, kills, is_same=False))
    assert "FAILED status 1" in str(Row("pack", timeline, [], is_same=False, failure="status 1"))
