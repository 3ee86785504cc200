"""An alarm ends a task that takes too long, and is told apart from whoever else cancels it."""

from __future__ import annotations

import asyncio
import time

import pytest

from serve_app.alarm import Alarm


async def wait_inside(alarm: Alarm, seconds: float) -> None:
    with alarm:
        alarm.set(seconds)
        await asyncio.sleep(30)


def test_a_task_that_takes_too_long_is_ended_and_may_go_on_afterwards() -> None:
    async def run() -> None:
        alarm = Alarm()
        with pytest.raises(TimeoutError):
            await wait_inside(alarm, 0.01)
        assert alarm.has_rung
        await asyncio.sleep(0)  # nothing of the cancelling is left

    asyncio.run(run())


def test_an_alarm_that_is_set_again_or_left_does_not_ring() -> None:
    async def run() -> bool:
        with Alarm() as alarm:
            alarm.set(0.01)
            alarm.set(30)
            await asyncio.sleep(0.03)
        with Alarm() as left:
            left.set(0.01)
        await asyncio.sleep(0.03)
        return alarm.has_rung or left.has_rung

    assert not asyncio.run(run())


def test_a_task_that_is_cancelled_by_others_stays_cancelled() -> None:
    async def wait() -> None:
        await wait_inside(Alarm(), 30)

    async def run() -> None:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


def test_a_task_whose_alarm_rings_while_others_cancel_it_stays_cancelled() -> None:
    async def wait() -> None:
        await wait_inside(Alarm(), 0.01)

    async def run() -> None:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.01, task.cancel)
        time.sleep(0.05)  # both are due in the same turn of the loop
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


def test_an_alarm_of_the_outside_passes_one_of_the_inside() -> None:
    async def run() -> None:
        outside, inside = Alarm(), Alarm()

        async def wait() -> None:
            with outside:
                outside.set(0.01)
                await wait_inside(inside, 30)

        with pytest.raises(TimeoutError):
            await wait()
        assert (outside.has_rung, inside.has_rung) == (True, False)

    asyncio.run(run())
