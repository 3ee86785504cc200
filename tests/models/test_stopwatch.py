"""Parts are counted once, and only where somebody measures."""

from __future__ import annotations

import asyncio
import time

import pytest

from models.stopwatch import measuring, part

SHORT, LONG = 0.02, 0.05


def test_a_part_inside_another_is_taken_off_it() -> None:
    with measuring() as watch, part("outer"):
        time.sleep(SHORT)
        with part("inner"):
            time.sleep(LONG)
        time.sleep(SHORT)
    assert list(watch.seconds) == ["outer", "inner"]
    assert watch.seconds["inner"] >= LONG
    assert 2 * SHORT <= watch.seconds["outer"] <= watch.total - LONG


def fail_late() -> None:
    """Fail after a while."""
    time.sleep(SHORT)
    raise ValueError("no")


def test_a_part_that_comes_twice_or_fails_is_counted_all_the_same() -> None:
    with measuring() as watch:
        with part("again"):
            time.sleep(SHORT)
        with pytest.raises(ValueError, match="no"), part("again"):
            fail_late()
    assert 2 * SHORT <= watch.seconds["again"] <= watch.total


def test_parts_on_a_thread_of_the_context_are_counted_and_later_ones_are_not() -> None:
    def work() -> None:
        with part("work"):
            time.sleep(SHORT)

    async def measured() -> dict[str, float]:
        with measuring() as watch:
            await asyncio.to_thread(work)
        counted = dict(watch.seconds)
        await asyncio.to_thread(work)
        assert watch.seconds == counted
        return counted

    assert asyncio.run(measured())["work"] >= SHORT
