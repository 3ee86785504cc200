"""How images reach an engine that takes batches, and what happens when an engine breaks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from starlette.testclient import TestClient

from models.bundle import open_bundle
from models.engines.base import Engine, Feeding, Images, Outputs
from models.errors import EngineError, ImageTypeError
from models.predictor import Predictor, open_predictor
from models.preprocess import Image
from serve_app.asgi import build_asgi
from serve_app.config import ServeOptions
from serve_app.errors import RequestError
from serve_app.model import ServedModel
from serve_app.trace import Trace, current
from tests.serve_app.conftest import ROOT, SIZE, encode, refused


class WatchedEngine:
    """The real engine fed with batches, with a note of each, a gate to hold it, and a way to break
    it.
    """

    def __init__(self, engine: Engine) -> None:
        self.name, self.precision, self.device = engine.name, engine.precision, engine.device
        self.feeding = Feeding("batches", parallel=1, max_batch=4)
        self.sizes: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.is_broken = False
        self._engine = engine

    def run(self, images: Images) -> Outputs:
        self.sizes.append(len(images))
        self.gate.wait(timeout=30)
        if self.is_broken:
            raise EngineError("the device at 0x5EC2E7 fell off the bus")
        return self._engine.run(images)

    def close(self) -> None:
        self._engine.close()


@pytest.fixture
def engine(bundle_uri: str, cache: Path) -> WatchedEngine:
    """The engine that takes batches."""
    options = ServeOptions(bundle=bundle_uri, threads=1).engine_options
    return WatchedEngine(open_predictor(open_bundle(bundle_uri, cache), options).engine)


@pytest.fixture
def served(
    bundle_uri: str, cache: Path, predictor: Predictor, engine: WatchedEngine
) -> Iterator[ServedModel]:
    """A model on the engine that takes batches."""
    options = ServeOptions(bundle=bundle_uri, threads=1, batch_wait_ms=20)
    bundle = open_bundle(bundle_uri, cache)
    model = ServedModel(Predictor(bundle, engine, predictor.proof), options)
    yield model
    model.close()


def test_batches_fill_while_the_engine_is_busy_and_answers_go_to_their_callers(
    served: ServedModel, engine: WatchedEngine, predictor: Predictor
) -> None:
    images = [encode(seed) for seed in range(9)]

    async def score_all() -> npt.NDArray[np.float32]:
        engine.gate.clear()
        first = asyncio.create_task(served.score(images[0]))
        while not engine.sizes:
            await asyncio.sleep(0.01)
        rest = [asyncio.create_task(served.score(image)) for image in images[1:]]
        await asyncio.sleep(0.3)
        engine.gate.set()
        answers = await asyncio.gather(first, *rest)
        rows = [answer.probabilities for answer in answers if answer.probabilities is not None]
        return np.concatenate(rows)

    got = asyncio.run(score_all())
    assert engine.sizes == [1, 4, 4]
    pixels = np.stack([predictor.prepare(image) for image in images])
    expected = predictor.predict(pixels).probabilities
    assert expected is not None
    np.testing.assert_allclose(got, expected, atol=0.01)


def test_a_lone_image_waits_no_longer_than_configured(served: ServedModel) -> None:
    async def score() -> float:
        await served.score(encode())  # the first one also starts threads
        started = asyncio.get_running_loop().time()
        await served.score(encode())
        return asyncio.get_running_loop().time() - started

    assert 0.02 <= asyncio.run(score()) < 1


def test_an_image_that_cannot_be_decoded_never_reaches_the_engine(
    served: ServedModel, engine: WatchedEngine
) -> None:
    async def score() -> list[object]:
        return list(await served.score_each([encode(1), b"no image", encode(2)]))

    scored = asyncio.run(score())
    assert isinstance(scored[1], ImageTypeError)
    assert sum(engine.sizes) == 2


def test_work_is_dropped_when_its_caller_has_gone(
    served: ServedModel, engine: WatchedEngine
) -> None:
    async def leave() -> None:
        engine.gate.clear()
        first = asyncio.create_task(served.score(encode(0)))
        while not engine.sizes:
            await asyncio.sleep(0.01)
        gone = [asyncio.create_task(served.score(encode(seed))) for seed in (1, 2)]
        stays = asyncio.create_task(served.score(encode(3)))
        await asyncio.sleep(0.2)
        for task in gone:
            task.cancel()
        await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(first, stays)

    asyncio.run(leave())
    assert engine.sizes == [1, 1]


@dataclass
class Connection:
    """The end of a client, as uvicorn tells of it."""

    disconnected: bool


@pytest.mark.parametrize("has_left", [True, False])
def test_images_of_a_connection_that_has_ended_are_neither_decoded_nor_run(
    served: ServedModel, engine: WatchedEngine, model: ServedModel, has_left: bool
) -> None:
    prepared = []

    def prepare() -> Image:
        prepared.append(1)
        return np.zeros((SIZE, SIZE, 3), np.uint8)

    async def ask(asked: ServedModel) -> tuple[object]:
        trace = Trace("x", "http")
        trace.connection = Connection(has_left)
        current.set(trace)
        return await asyncio.gather(asked.prepare_each([prepare, prepare]), return_exceptions=True)

    by_streams, by_batches = asyncio.run(ask(model)), asyncio.run(ask(served))
    for (found,) in (by_streams, by_batches):
        assert isinstance(found, asyncio.CancelledError) == has_left
    assert len(prepared) == (0 if has_left else 4)
    assert sum(engine.sizes) == (0 if has_left else 2)


@pytest.mark.parametrize("has_left", [True, False])
def test_pixels_of_a_connection_that_has_ended_are_not_run(
    served: ServedModel, engine: WatchedEngine, model: ServedModel, has_left: bool
) -> None:
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)

    async def ask(asked: ServedModel) -> list[object]:
        trace = Trace("x", "http")
        trace.connection = Connection(has_left)
        current.set(trace)
        return list(await asyncio.gather(asked.run_each([pixels] * 2), return_exceptions=True))

    num_before = model.statistics.counters()["runs"]
    for (found,) in (asyncio.run(ask(model)), asyncio.run(ask(served))):
        assert isinstance(found, asyncio.CancelledError) == has_left
    num_run = model.statistics.counters()["runs"] - num_before
    assert (num_run, sum(engine.sizes)) == ((0, 0) if has_left else (2, 2))


def test_images_whose_connection_ends_while_they_wait_for_a_batch_are_not_run(
    served: ServedModel, engine: WatchedEngine
) -> None:
    async def leave() -> object:
        engine.gate.clear()
        first = asyncio.create_task(served.score(encode(0)))
        while not engine.sizes:
            await asyncio.sleep(0.01)
        trace = Trace("x", "http")
        connection = trace.connection = Connection(disconnected=False)
        current.set(trace)
        left = asyncio.create_task(served.score(encode(1)))
        await asyncio.sleep(0.2)  # it is decoded by then
        connection.disconnected = True
        engine.gate.set()
        await first
        (found,) = await asyncio.gather(left, return_exceptions=True)
        return found

    assert isinstance(asyncio.run(leave()), asyncio.CancelledError)
    assert engine.sizes == [1]


def test_a_broken_engine_is_a_500_without_internals_and_then_not_ready_until_it_proves_itself(
    served: ServedModel, engine: WatchedEngine
) -> None:
    with TestClient(build_asgi(served), base_url=f"http://test{ROOT}", root_path=ROOT) as client:
        assert client.post("/classify", content=encode()).status_code == 200
        engine.is_broken = True
        sentence = refused(client.post("/classify", content=encode()), 500, "engine")
        assert "0x5EC2E7" not in sentence
        refused(client.get("/ready"), 503, "engine")
        engine.is_broken = False
        assert client.get("/ready").status_code == 200
        assert client.post("/classify", content=encode()).status_code == 200


def test_an_engine_that_hangs_is_not_healthy_until_it_answers_again(
    options: ServeOptions, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request was given up after its deadline, and the replica stayed healthy for ever."""
    may_go = threading.Event()

    async def run() -> None:
        predictor = open_predictor(open_bundle(options.bundle, cache), options.engine_options)
        served = ServedModel(predictor, options.model_copy(update={"deadline_seconds": 0.1}))
        work = predictor.engine.run

        def hang(images: Images) -> Outputs:
            assert may_go.wait(20)
            return work(images)

        await served.check()
        monkeypatch.setattr(predictor.engine, "run", hang)
        for _ in range(2):
            with pytest.raises(RequestError, match="no answer within"):
                await served.gate.answered_whole(lambda: served.score(encode()))
        looks = [asyncio.create_task(served.check()) for _ in range(3)]
        await asyncio.sleep(0.3)
        assert not any(look.done() for look in looks)
        looks.pop().cancel()  # Serve gives up a look after a while; the next one waits as well
        may_go.set()
        await asyncio.gather(*looks)
        await served.check()
        assert served.gate.num_too_late == 0
        await asyncio.to_thread(served.close)

    asyncio.run(run())


def test_a_closed_model_is_not_ready(bundle_uri: str, cache: Path) -> None:
    options = ServeOptions(bundle=bundle_uri, threads=1)
    served = ServedModel(
        open_predictor(open_bundle(bundle_uri, cache), options.engine_options), options
    )
    with TestClient(build_asgi(served), base_url=f"http://test{ROOT}", root_path=ROOT) as client:
        served.close()
        refused(client.get("/ready"), 503, "closed")
