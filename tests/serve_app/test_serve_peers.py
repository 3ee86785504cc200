"""What a replica and the catalog do while Serve's controller does not answer: they go on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Iterator
from typing import Any, NoReturn, TypeVar

import pytest
from ray import serve
from ray.serve.exceptions import RayServeException

import serve_app.directory
import serve_app.serve_peers
from serve_app.asking import Asking
from serve_app.directory import Directory
from serve_app.errors import RequestError
from serve_app.model import ServedModel
from serve_app.peers import Confirmed
from serve_app.serve_peers import ServePeers

HANGS_SECONDS = 20.0
LONGEST_PAUSE = 1.0  # of the event loop, which has other things to do

Result = TypeVar("Result")


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let Serve wait for its controller, as where that is stopped; be patient for 0.3 s."""
    ended = threading.Event()

    def hang(*_: Any) -> NoReturn:
        ended.wait(HANGS_SECONDS)
        raise RayServeException("the test is over")

    monkeypatch.setattr(serve, "get_app_handle", hang)
    monkeypatch.setattr(serve_app.directory, "_get_global_client", hang)
    monkeypatch.setattr(serve_app.directory, "PATIENCE_SECONDS", 0.3)
    for name in ("REFRESH_SECONDS", "COUNT_SECONDS"):
        monkeypatch.setattr(serve_app.serve_peers, name, 0.3)
    yield
    ended.set()


def run(work: Awaitable[Result]) -> Result:
    """Return what comes of it, and see that the event loop goes on meanwhile."""

    async def watched() -> Result:
        done = asyncio.ensure_future(work)
        while not done.done():
            before = time.monotonic()
            await asyncio.sleep(0.01)
            assert time.monotonic() - before < LONGEST_PAUSE, "the event loop stood still"
        return await done

    return asyncio.run(watched())


@pytest.mark.usefixtures("hanging")
def test_a_replica_counts_for_itself_while_the_controller_hangs(model: ServedModel) -> None:
    async def statistics() -> Any:
        return await ServePeers("app", model).statistics()

    assert run(statistics()) == (model.statistics.counters(),)


@pytest.mark.usefixtures("hanging")
def test_a_label_write_is_answered_while_the_controller_hangs(model: ServedModel) -> None:
    async def refreshed() -> Confirmed:
        return await ServePeers("app", model).refresh_labels(0)

    assert run(refreshed()) == Confirmed(1, 1)


@pytest.mark.usefixtures("hanging")
def test_a_label_write_is_answered_while_the_store_hangs_too(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.labels, "refreshed", lambda: asyncio.sleep(HANGS_SECONDS))

    async def refreshed() -> Confirmed:
        return await ServePeers("app", model).refresh_labels(7)

    assert run(refreshed()) == Confirmed(1, 0)


@pytest.mark.usefixtures("hanging")
def test_a_model_names_its_own_version_while_the_controller_hangs(model: ServedModel) -> None:
    async def versions() -> Any:
        return await ServePeers("app", model).versions()

    assert run(versions()) == [model.manifest.version]


@pytest.mark.usefixtures("hanging")
def test_all_who_ask_for_the_models_meanwhile_are_refused_at_the_same_time() -> None:
    async def entries() -> list[Any]:
        directory = Directory()
        asked = (directory.entries() for _ in range(10))
        return await asyncio.gather(*asked, return_exceptions=True)

    began = time.monotonic()
    refusals = run(entries())
    assert time.monotonic() - began < 2  # one after the other it would be 3
    assert {type(each) for each in refusals} == {RequestError}
    assert {(each.status, each.code) for each in refusals} == {(503, "not_ready")}
    assert "controller has not answered for 0.3 s" in str(refusals[0])


def test_a_question_that_is_open_is_not_asked_again() -> None:
    asked: list[str] = []
    may_answer = threading.Event()

    def ask(word: str) -> str:
        asked.append(word)
        may_answer.wait(HANGS_SECONDS)
        return word.upper()

    async def main() -> None:
        asking = Asking()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asking.answer(ask, "a"), 0.1)
        waiting = [asyncio.create_task(asking.answer(ask, word)) for word in ("a", "a", "b")]
        await asyncio.sleep(0.05)
        assert asked == ["a"]
        may_answer.set()
        assert await asyncio.gather(*waiting) == ["A", "A", "B"]
        assert await asking.answer(ask, "a") == "A"
        assert asked == ["a", "b", "a"]

    asyncio.run(main())
