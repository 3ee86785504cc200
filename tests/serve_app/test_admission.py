"""Who is let in, who waits and who is refused: places are for requests that have come whole."""

from __future__ import annotations

import asyncio
import gzip
import math
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest
from starlette.testclient import TestClient
from starlette.types import Message

import serve_app.admission
import serve_app.arriving
import serve_app.limits
from models.bundle import open_bundle
from models.engines.base import Feeding
from models.predictor import Prediction, open_predictor
from serve_app.admission import Gate
from serve_app.asgi import build_asgi
from serve_app.config import Limits, ServeOptions
from serve_app.errors import RequestError
from serve_app.model import ServedModel
from serve_app.oip.infer import BYTES_ASIDE
from serve_app.statistics import Statistics
from tests.clock import Clock
from tests.serve_app.conftest import ROOT, SIZE, encode, refused

PATIENCE = 20.0
IMAGE = encode()

Change = Callable[..., ServedModel]


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock goes on only when a test says so."""

    now = 0.0

    def time(self) -> float:
        """Return its seconds."""
        return self.now


def run_by_own_clock(main: Callable[[Loop], Coroutine[Any, Any, None]]) -> None:
    """Run what takes its time from its loop, so that a machine that is busy takes none of it."""
    loop = Loop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main(loop))


async def until(holds: Callable[[], bool]) -> None:
    """Let the server go on until something holds."""
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.01)


@pytest.fixture
def narrow(options: ServeOptions, cache: Path) -> Iterator[Change]:
    """Make a model with one place and other settings."""
    made: list[ServedModel] = []

    def make(**changes: Any) -> ServedModel:
        narrowed = options.model_copy(update={"max_requests": 1, **changes})
        predictor = open_predictor(open_bundle(options.bundle, cache), options.engine_options)
        made.append(ServedModel(predictor, narrowed))
        return made[-1]

    yield make
    for model in made:
        model.close()


class Client:
    """One request that is sent in parts."""

    def __init__(self, model: ServedModel, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self._parts: asyncio.Queue[Message] = asyncio.Queue()
        self._told: list[Message] = []
        self._answer = asyncio.create_task(
            build_asgi(model)(
                {
                    "type": "http",
                    "method": "POST",
                    "path": f"{ROOT}/classify",
                    "root_path": ROOT,
                    "query_string": b"",
                    "headers": list(headers),
                },
                self._parts.get,
                self._collect,
            )
        )

    async def send(self, part: bytes, *, is_last: bool = False) -> None:
        """Send a part of the body, and let the server look at it."""
        self._parts.put_nowait({"type": "http.request", "body": part, "more_body": not is_last})
        for _ in range(5):
            await asyncio.sleep(0)

    async def answer(self) -> tuple[int, Any]:
        """Return status and body."""
        await asyncio.wait_for(self._answer, PATIENCE)
        return self._told[0]["status"], orjson.loads(self._told[1]["body"])

    @property
    def is_answered(self) -> bool:
        """Whether the answer is there already."""
        return self._answer.done()

    def header(self, name: str) -> str:
        """Return a header of the answer, "" without."""
        return str(dict(self._told[0]["headers"]).get(name.encode(), b"").decode())

    def leave(self) -> None:
        """Do what Serve does when a client has gone."""
        self._answer.cancel()

    async def _collect(self, message: Message) -> None:
        self._told.append(message)


def test_a_body_that_is_still_coming_takes_nobodys_place(narrow: Change) -> None:
    async def run() -> None:
        model = narrow()
        slow, quick = Client(model), Client(model)
        await slow.send(IMAGE[:100])
        assert (model.gate.num_inside, model.gate.arrivals.num_bytes) == (0, 100)
        await quick.send(IMAGE, is_last=True)
        assert (await quick.answer())[0] == 200
        await slow.send(IMAGE[100:], is_last=True)
        assert (await slow.answer())[0] == 200
        assert (model.gate.num_inside, model.gate.arrivals.num_bytes) == (0, 0)

    asyncio.run(run())


def test_a_body_that_ends_when_all_places_are_taken_is_refused(narrow: Change) -> None:
    async def run() -> None:
        model = narrow()
        late = Client(model)
        await late.send(IMAGE[:100])
        with model.gate.admitted():
            await late.send(IMAGE[100:], is_last=True)
            status, body = await late.answer()
        assert (status, body["code"]) == (429, "queue_full")
        assert (model.gate.num_inside, model.gate.arrivals.num_bytes) == (0, 0)
        assert model.gate.num_bytes == 0

    asyncio.run(run())


def num_let_in(gate: Gate, most: int) -> int:
    """Return how many of so many requests at the same time find a place."""
    with ExitStack() as inside:
        for number in range(most):
            try:
                inside.enter_context(gate.admitted())
            except RequestError:
                return number
    return most


def test_a_burst_may_queue_and_under_overload_the_queue_is_short(
    narrow: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(serve_app.admission, "time", clock)
    monkeypatch.setattr(serve_app.admission, "BUSY_SECONDS", 0.3)
    gate = narrow(max_requests=6, busy_requests=2).gate
    assert num_let_in(gate, 6) == 6  # a burst; the next one as well
    assert num_let_in(gate, 6) == 6
    assert num_let_in(gate, 7) == 6  # more than the longest queue
    assert num_let_in(gate, 7) == 2  # so the short one counts
    clock.now += 0.2
    assert num_let_in(gate, 7) == 2
    clock.now += 0.2  # for a while, whoever is refused meanwhile
    assert num_let_in(gate, 4) == 4
    assert num_let_in(gate, 5) == 4  # a trial, in which twice as many are too many
    for _ in range(2):
        clock.now += 0.29  # and this time it is twice as long
        assert num_let_in(gate, 7) == 2
    clock.now += serve_app.admission.TRIAL_SECONDS + 0.1
    assert num_let_in(gate, 6) == 6
    assert num_let_in(gate, 7) == 6
    clock.now += 0.31  # after a while as short as at first
    assert num_let_in(gate, 4) == 4


def test_under_overload_every_image_of_a_request_counts_until_it_is_scored(
    narrow: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        model = narrow(max_requests=9, max_queued_images=6, busy_requests=3, decode_threads=1)
        gate, may_go = model.gate, threading.Semaphore(0)
        prepare = model.predictor.prepare

        def waiting(*arguments: Any) -> Any:
            may_go.acquire(timeout=PATIENCE)
            return prepare(*arguments)

        monkeypatch.setattr(model.predictor, "prepare", waiting)
        with gate.admitted():
            scoring = asyncio.create_task(model.score_each([IMAGE] * 4))
            await until(lambda: gate.num_more_images == 3)
            assert gate.num_inside == 1
            assert num_let_in(gate, 4) == 2  # of a burst, which may hold six images
            assert num_let_in(gate, 4) == 0
            may_go.release(2)
            await until(lambda: gate.num_more_images == 2)
            assert num_let_in(gate, 4) == 0
            may_go.release(1)
            await until(lambda: gate.num_more_images == 1)
            assert num_let_in(gate, 4) == 1  # two images are left
            may_go.release(1)
            assert all(isinstance(each, Prediction) for each in await scoring)
            assert gate.num_more_images == 0
            given_up = asyncio.create_task(model.score_each([IMAGE] * 4))
            await until(lambda: gate.num_more_images == 3)
            given_up.cancel()
            await until(lambda: gate.num_more_images == 0)
            may_go.release(4)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("feeding", "places"),
    [
        (Feeding("streams", 3, 1), 18),
        (Feeding("batches", 1, 32), 64),
        (Feeding("streams", 64, 1), 96),  # never more than without overload
    ],
)
def test_the_short_queue_follows_what_the_engine_takes_at_once(
    options: ServeOptions, feeding: Feeding, places: int
) -> None:
    gate = Gate(options, feeding, Statistics())
    assert num_let_in(gate, 200) == options.max_requests == 96
    assert num_let_in(gate, 200) == places


def test_no_queue_is_longer_than_the_images_that_may_wait(options: ServeOptions) -> None:
    narrow = options.model_copy(update={"max_queued_images": 4})
    assert num_let_in(Gate(narrow, Feeding("streams", 4, 1), Statistics()), 200) == 4


def test_what_has_come_whole_has_a_deadline_too(narrow: Change) -> None:
    """A call over gRPC once waited for ever, and kept its place."""

    async def run() -> None:
        gate = narrow(deadline_seconds=0.05).gate
        with pytest.raises(RequestError, match=r"no answer within 0.05 s") as refused:
            await gate.answered_whole(lambda: asyncio.sleep(PATIENCE))
        assert (refused.value.status, gate.num_inside) == (503, 0)
        assert await gate.answered_whole(lambda: asyncio.sleep(0, "answer")) == "answer"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("headers", "closes"),
    [
        ([], False),
        ([(b"content-length", b"1048576")], False),
        ([(b"content-length", b"1048577")], True),
        ([(b"content-length", b"10000000000")], True),
        ([(b"content-length", b"many")], True),
        ([(b"transfer-encoding", b"chunked")], True),
    ],
)
def test_a_refusal_ends_the_connection_where_much_is_still_to_come(
    narrow: Change, headers: list[tuple[bytes, bytes]], closes: bool
) -> None:
    """Nobody limits or times what comes after an answer: a refused client could go on for ever."""

    async def run() -> None:
        model = narrow()
        with model.gate.admitted():
            client = Client(model, headers)
            assert (await client.answer())[0] == 429
        assert ("close" in client.header("connection")) is closes

    asyncio.run(run())


def test_unfinished_bodies_hold_no_more_than_they_may(
    narrow: Change, options: ServeOptions
) -> None:
    async def run() -> None:
        limits = options.limits.model_copy(update={"max_upload_bytes": 1000})
        model = narrow(limits=limits)
        first, second = Client(model), Client(model)
        await first.send(IMAGE[:900])
        await second.send(IMAGE[:200])
        status, body = await second.answer()
        assert (status, body["code"]) == (429, "queue_full")
        assert "1,000 bytes" in body["error"]
        assert model.gate.arrivals.num_bytes == 900
        first.leave()
        await until(lambda: model.gate.arrivals.num_bytes == 0)

    asyncio.run(run())


def test_who_sends_slowest_gives_way_and_not_who_comes_last(
    narrow: Change, options: ServeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four clients that sent all but the end of a large body kept out everybody with another."""
    clock = Clock()
    monkeypatch.setattr(serve_app.arriving, "time", clock)

    async def run() -> None:
        limits = options.limits.model_copy(update={"max_upload_bytes": 4000})
        model = narrow(limits=limits, max_requests=8)
        slow = [Client(model) for _ in range(4)]
        for client in slow:
            await client.send(IMAGE[:900])
        steady = Client(model)
        await steady.send(IMAGE[:100])
        for at in range(900, 910):
            clock.now += 1
            for client in slow[1:]:  # of the first one nothing comes
                await client.send(IMAGE[at : at + 1])
        await steady.send(IMAGE[100:300])
        new = Client(model)
        await new.send(IMAGE[:500])
        status, body = await slow[0].answer()
        assert (status, body["code"]) == (429, "queue_full")
        assert "this one comes slowest" in body["error"]
        assert slow[0].header("connection") == "close"
        assert slow[0].header("retry-after") == "1"
        assert not any(client.is_answered for client in (*slow[1:], steady, new))
        more = Client(model)
        await more.send(IMAGE[:600])
        assert (await slow[1].answer())[0] == 429  # a byte a second
        more.leave()
        for client, came in ((steady, 300), (new, 500), (slow[2], 910)):
            await client.send(IMAGE[came:], is_last=True)
            assert (await client.answer())[0] == 200
        assert model.gate.arrivals.num_bytes == 910
        slow[3].leave()
        await until(lambda: model.gate.arrivals.num_bytes == 0)

    asyncio.run(run())


def test_requests_inside_hold_no_more_bytes_than_they_may(
    narrow: Change, options: ServeOptions
) -> None:
    async def run() -> None:
        most = len(IMAGE) + 1000
        limits = options.limits.model_copy(update={"max_queued_bytes": most})
        model = narrow(limits=limits, max_requests=8)
        with model.gate.admitted(1001):
            late, parts = Client(model), Client(model)
            await late.send(IMAGE, is_last=True)
            await parts.send(IMAGE[:100])
            await parts.send(IMAGE[100:], is_last=True)
            for client in (late, parts):
                status, body = await client.answer()
                assert (status, body["code"]) == (429, "queue_full")
                assert f"hold 1,001 of {most:,} bytes" in body["error"]
            with pytest.raises(RequestError, match="bytes") as refused:
                await model.gate.answered_whole(lambda: asyncio.sleep(0), len(IMAGE))
            assert refused.value.status == 429
        fits = Client(model)
        await fits.send(IMAGE, is_last=True)
        assert (await fits.answer())[0] == 200
        assert (model.gate.num_inside, model.gate.num_bytes) == (0, 0)

    asyncio.run(run())


def test_a_body_that_was_compressed_counts_as_what_it_unpacks_to(
    narrow: Change, options: ServeOptions
) -> None:
    limits = options.limits.model_copy(update={"max_queued_bytes": 400_000})
    model = narrow(limits=limits, max_requests=8)
    packed = gzip.compress(bytes(300_000))
    headers = {"Content-Encoding": "gzip", "Inference-Header-Content-Length": "0"}
    with TestClient(build_asgi(model), base_url=f"http://test{ROOT}", root_path=ROOT) as client:
        with model.gate.admitted(150_000):
            refusal = refused(
                client.post("/infer", content=packed, headers=headers), 429, "queue_full"
            )
            assert "bytes" in refusal
        # It is too large for an image, as is found out when it is looked at.
        refused(client.post("/infer", content=packed, headers=headers), 413, "image_too_large")
    assert (model.gate.num_inside, model.gate.num_bytes) == (0, 0)


def numbers(count: int) -> bytes:
    """Return the body of a request for so many images as a list of numbers."""
    shape = [count, SIZE, SIZE, 3]
    data = [200] * math.prod(shape)
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": shape, "data": data}
    return orjson.dumps({"inputs": [tensor]})


def test_a_body_of_json_counts_as_what_it_is_taken_apart_into(
    narrow: Change, options: ServeOptions
) -> None:
    """It counted as its bytes, and takes 7 to 40 times as much while it is read."""
    body = numbers(8)
    most = 7_000_000
    assert BYTES_ASIDE < len(body) < most / 10
    limits = options.limits.model_copy(update={"max_queued_bytes": most, "max_images": 8})
    model = narrow(limits=limits, max_requests=8)
    with TestClient(build_asgi(model), base_url=f"http://test{ROOT}", root_path=ROOT) as client:
        with model.gate.admitted(1_000_000):
            refusal = refused(client.post("/infer", content=body), 429, "queue_full")
            assert f"of {most:,} bytes" in refusal
            assert client.post("/infer", content=numbers(1)).status_code == 200
        assert client.post("/infer", content=body).status_code == 200  # alone there is room
    assert (model.gate.num_inside, model.gate.num_bytes) == (0, 0)


def test_a_body_that_comes_a_byte_at_a_time_is_given_up(
    narrow: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve_app.limits, "LOOK_SECONDS", 0.2)

    async def run(loop: Loop) -> None:
        client = Client(narrow())
        for _ in range(20):
            await client.send(b"x")
            loop.now += 0.02
        assert client.is_answered
        status, body = await client.answer()
        assert (status, body["code"]) == (408, "upload_timeout")

    run_by_own_clock(run)


def test_a_body_that_is_large_and_steady_may_take_its_time(
    narrow: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve_app.limits, "LOOK_SECONDS", 0.05)

    async def run(loop: Loop) -> None:
        client = Client(narrow())
        for start in range(0, 1000, 100):
            await client.send(IMAGE[start : start + 100])
            loop.now += 0.02
        await client.send(IMAGE[1000:], is_last=True)
        assert (await client.answer())[0] == 200

    run_by_own_clock(run)


def test_a_request_that_waits_longer_than_its_deadline_is_dropped_before_it_is_decoded(
    narrow: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, may_decode = [], threading.Event()

    async def run() -> None:
        model = narrow(max_requests=8, deadline_seconds=0.2, decode_threads=1)
        prepare = model.predictor.prepare

        def slowly(*arguments: Any) -> Any:
            may_decode.wait(PATIENCE)
            decoded.append(1)
            return prepare(*arguments)

        monkeypatch.setattr(model.predictor, "prepare", slowly)
        clients = [Client(model) for _ in range(4)]
        for client in clients:
            await client.send(IMAGE, is_last=True)
        answers = [await client.answer() for client in clients]
        assert {(status, body["code"]) for status, body in answers} == {(503, "deadline")}
        assert model.gate.num_inside == 0
        may_decode.set()
        await asyncio.to_thread(model.close)  # waits for the thread

    asyncio.run(run())
    assert decoded == [1]  # the one that had a thread


def test_a_request_whose_client_has_left_gives_its_place_back(
    narrow: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_decode = threading.Event()

    async def run() -> None:
        model = narrow()
        prepare = model.predictor.prepare

        def held(*arguments: Any) -> Any:
            may_decode.wait(PATIENCE)
            return prepare(*arguments)

        monkeypatch.setattr(model.predictor, "prepare", held)
        client = Client(model)
        await client.send(IMAGE, is_last=True)
        assert model.gate.num_inside == 1
        client.leave()
        await until(lambda: model.gate.num_inside == 0)
        may_decode.set()

    try:
        asyncio.run(run())
    finally:
        may_decode.set()


def test_limits_that_contradict_each_other_are_refused() -> None:
    for name in ("max_upload_bytes", "max_queued_bytes"):
        with pytest.raises(ValueError, match=f"{name} = 10 is less than max_body_bytes"):
            Limits.model_validate({name: 10})
