"""The hour of mixed load without a server: what it sends, what it calls growth, what it counts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from benchmarks.photos import write_large
from benchmarks.soak.mix import LEFT, Kind, build_mix
from benchmarks.soak.sender import Seen, Sender
from benchmarks.soak.watch import Sample, growths, slope
from benchmarks.wire import Request
from tests.benchmarks.tiny_server import tiny_server
from tests.serve_app.conftest import encode

MODELS = {"generic": "/v2/models/a", "dynamic": "/v2/models/b"}


def samples(memory: Sequence[float], descriptors: Sequence[int] | None = None) -> list[Sample]:
    """Return an hour of samples of one role."""
    files = descriptors or [100] * len(memory)
    step = 3600 / (len(memory) - 1)
    return [
        Sample(number * step, "replicas", 2, mib, files[number], 50)
        for number, mib in enumerate(memory)
    ]


def test_a_leak_is_growth_and_warming_up_or_noise_is_not() -> None:
    chance = random.Random(0)
    noise = [chance.uniform(-20, 20) for _ in range(361)]
    warming = [min(800.0, 400 + 10 * n) + noise[n] for n in range(361)]
    (flat,) = growths(samples(warming))
    assert flat.is_flat
    assert abs(flat.memory_mib_per_hour) < 10
    leaking = [mib + 60 * n / 360 for n, mib in enumerate(warming)]
    (leak,) = growths(samples(leaking))
    assert not leak.is_flat
    assert leak.memory_mib_per_hour == pytest.approx(60, abs=10)


def test_descriptors_that_grow_are_found() -> None:
    (growth,) = growths(samples([500.0] * 361, [100 + n // 20 for n in range(361)]))
    assert growth.descriptors_per_hour == pytest.approx(18, abs=2)
    assert not growth.is_flat


def test_a_spike_does_not_move_the_slope() -> None:
    values = [1.0] * 50
    values[-1] = 1000.0
    assert slope(range(50), values) == 0


def test_every_kind_of_request_is_whole_and_has_a_right_outcome(tmp_path: Path) -> None:
    images = tmp_path / "photos"
    images.mkdir()
    for number in range(20):
        (images / f"{number:02}.jpg").write_bytes(encode(size=(60, 40)))
    mix = build_mix(MODELS, images, write_large(tmp_path / "large", images).parent)
    assert len({kind.name for kind in mix}) == len(mix)
    for kind in mix:
        assert kind.right
        assert kind.weight > 0
        for request in kind.requests:
            head, _, body = request.encode("here").partition(b"\r\n\r\n")
            assert f"Content-Length: {len(body)}".encode() in head
    paths = {urlsplit(request.path).path for kind in mix for request in kind.requests}
    assert paths >= {f"{MODELS['dynamic']}/classify", f"{MODELS['generic']}/infer", "/"}


def test_what_is_not_right_is_counted_with_an_example() -> None:
    request = Request("/x", b"x" * 5000)
    kinds = [
        Kind("good", 1, (request,), frozenset({"200"})),
        Kind("refused", 1, (request,), frozenset({"422"})),
        Kind("gone", 1, (request,), frozenset({LEFT}), "leaves early"),
    ]
    with tiny_server(lambda number: ((200, 200, 422, 500)[number % 4], 0.0)) as server:
        parts = urlsplit(server.url)
        seen = Seen()
        sender = Sender((str(parts.hostname), int(parts.port or 0)), kinds, seen)

        async def run() -> None:
            for kind in (kinds[0], kinds[1], kinds[1], kinds[0], kinds[2]):
                await sender.send(kind)
            await sender.run(100, lambda: True)

        asyncio.run(run())
    assert seen.outcomes["good"] == {"200": 1, "500": 1}
    assert seen.outcomes["refused"] == {"200": 1, "422": 1}
    assert seen.outcomes["gone"] == {LEFT: 1}
    assert seen.wrong == 2
    assert [example.split(":")[0] for example in seen.examples] == ["refused", "good"]
