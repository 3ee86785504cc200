"""Jobs on threads: in order, dropped when nobody waits, and never the end of a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from serve_app.threads import Threads


@pytest.fixture
def threads() -> Iterator[Threads]:
    """One thread."""
    made = Threads(1, "test")
    yield made
    made.close()


class Beyond(BaseException):
    """What extensions in Rust raise when they break: no `Exception`."""


def test_a_job_runs_on_a_thread_and_its_result_comes_back(threads: Threads) -> None:
    async def run() -> list[str]:
        names = [threads.run(lambda: threading.current_thread().name) for _ in range(3)]
        return await asyncio.gather(*names)

    assert asyncio.run(run()) == ["test_0"] * 3


@pytest.mark.parametrize("kind", [ValueError, Beyond])
def test_what_a_job_raises_is_raised_where_it_is_awaited_and_the_thread_goes_on(
    threads: Threads, kind: type[BaseException]
) -> None:
    def fail() -> None:
        raise kind("x")

    async def run() -> int:
        with pytest.raises(kind, match="x"):
            await threads.run(fail)
        return await threads.run(int, "7")

    assert asyncio.run(run()) == 7


def test_a_job_that_ends_as_an_iterator_does_is_told(threads: Threads) -> None:
    """No future takes a `StopIteration`: its caller would have waited for ever."""

    async def run() -> None:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.wait_for(threads.run(next, iter(())), 10)

    asyncio.run(run())


def test_a_job_that_is_cancelled_while_it_waits_never_begins(threads: Threads) -> None:
    held, begun = threading.Event(), list[str]()

    async def run() -> None:
        first = threads.run(held.wait, 30)
        gone, stays = threads.run(begun.append, "gone"), threads.run(begun.append, "stays")
        gone.cancel()
        held.set()
        await asyncio.gather(first, stays)

    asyncio.run(run())
    assert begun == ["stays"]


def test_closing_cancels_what_waits_and_lets_the_running_job_end(threads: Threads) -> None:
    begun, held = threading.Event(), threading.Event()

    def hold() -> str:
        begun.set()
        held.wait(30)
        return "done"

    async def run() -> None:
        running, waiting = threads.run(hold), threads.run(int)
        await asyncio.to_thread(begun.wait, 30)
        closing = asyncio.create_task(asyncio.to_thread(threads.close))
        with pytest.raises(asyncio.CancelledError):
            await waiting
        held.set()
        assert await running == "done"
        await closing
        with pytest.raises(RuntimeError, match="ended"):
            threads.run(int)

    asyncio.run(run())


def test_a_thread_outlives_the_loop_that_asked_it(threads: Threads) -> None:
    held = threading.Event()

    async def leave() -> None:
        threads.run(held.wait, 30)
        await asyncio.sleep(0.05)

    async def ask() -> int:
        return await threads.run(int, "7")

    asyncio.run(leave())
    held.set()
    assert asyncio.run(ask()) == 7


def test_a_job_that_finds_nobody_waiting_cancels_itself(threads: Threads) -> None:
    def give_up() -> None:
        raise asyncio.CancelledError

    async def run() -> int:
        dropped = threads.run(give_up)
        (found,) = await asyncio.gather(dropped, return_exceptions=True)
        assert isinstance(found, asyncio.CancelledError)
        assert dropped.cancelled()
        return await threads.run(int, "7")

    assert asyncio.run(run()) == 7
