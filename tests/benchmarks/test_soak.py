"""The hour of mixed load without a server: what it sends, what it calls growth, what it counts."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from benchmarks.photos import write_large
from benchmarks.soak.growth import growths, slope
from benchmarks.soak.logs import find_complaints
from benchmarks.soak.mix import LEFT, Kind, build_mix, label_write
from benchmarks.soak.sender import TOO_LARGE, Seen, Sender
from benchmarks.soak.watch import LOGS, Sample, Watcher, read_samples, role_in
from benchmarks.wire import Request
from cluster.environment import MARK
from cluster.resilience import BUFFER_BYTES
from tests.benchmarks.tiny_server import tiny_server
from tests.serve_app.conftest import encode

HOLDER = "import time; held = bytearray(40 << 20); print('here', flush=True); time.sleep(60)"
MODELS = {"generic": "/v2/models/a", "dynamic": "/v2/models/b"}


def samples(memory: Sequence[float], descriptors: Sequence[int] | None = None) -> list[Sample]:
    """Return an hour of samples of one process."""
    files = descriptors or [100] * len(memory)
    step = 3600 / (len(memory) - 1)
    return [
        Sample(number * step, "replicas of caps", 7, mib, mib, mib, files[number], 50)
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


@pytest.mark.parametrize("minute", [30, 45])
def test_one_jump_is_growth_too(minute: int) -> None:
    jumping = [230.0 + 300 * (n * 10 >= minute * 60) for n in range(361)]
    (jump,) = growths(samples(jumping))
    assert not jump.is_flat


def test_threads_that_stay_are_growth() -> None:
    flat = samples([500.0] * 361)
    more = [dataclasses.replace(each, threads=50 + n // 40) for n, each in enumerate(flat)]
    (growth,) = growths(more)
    assert (growth.more_threads, growth.verdict) == (6, "grows")


def test_a_role_that_vanished_has_ended() -> None:
    haproxy = [
        dataclasses.replace(each, role="HAProxy", pid=9)
        for each in samples([16.0] * 361)
        if each.seconds < 3000
    ]
    found = {each.role: each for each in growths([*samples([500.0] * 361), *haproxy])}
    assert found["HAProxy"].verdict == "1 ended"


def test_descriptors_that_grow_are_found() -> None:
    (growth,) = growths(samples([500.0] * 361, [100 + n // 20 for n in range(361)]))
    assert growth.descriptors_per_hour == pytest.approx(18, abs=2)
    assert not growth.is_flat


def test_a_replica_that_was_replaced_is_told_from_one_that_is_flat() -> None:
    lived = samples([500.0] * 361)
    died = [dataclasses.replace(each, pid=8) if each.seconds < 1000 else each for each in lived]
    (whole,), (broken,) = growths(lived), growths(died)
    assert whole.is_ours
    assert (whole.verdict, broken.verdict) == ("flat", "1 ended")


def test_processes_of_one_role_are_added_up() -> None:
    one = samples([500.0] * 361)
    other = [dataclasses.replace(each, pid=8, memory_mib=100.0) for each in one]
    (growth,) = growths([*one, *other])
    assert (growth.memory_mib, growth.first_mib, growth.last_mib) == (600, 600, 600)
    assert (growth.first_descriptors, growth.last_descriptors) == (200, 200)


def test_a_replica_is_told_by_what_it_serves() -> None:
    assert role_in("ray::ServeReplica:caps:model") == "replicas of caps"
    assert role_in("ray::ServeController") == "Serve controller"
    assert role_in("python -m something") == "other"


def test_what_a_watcher_sees_is_kept_in_its_file(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "serve.log").write_bytes(bytes(3 << 20))
    environment = {**os.environ, MARK: "this-soak"}
    watcher = Watcher("this-soak", logs, tmp_path / "samples.jsonl")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], env=environment, text=True, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        watcher.sample()
        process.kill()
    watcher.sample()
    held = [each for each in watcher.samples if each.pid == process.pid]
    assert [each.role for each in held] == ["other"]
    assert held[0].memory_mib > 40
    assert held[0].rss_mib >= held[0].pss_mib >= held[0].memory_mib
    assert held[0].descriptors >= 3
    sizes = [each.memory_mib for each in watcher.samples if each.role == LOGS]
    assert sizes == [3.0, 3.0]
    assert read_samples(tmp_path / "samples.jsonl") == watcher.samples


def test_logs_are_read_for_errors_and_tracebacks(tmp_path: Path) -> None:
    serve = tmp_path / "serve"
    serve.mkdir()
    (serve / "replica_caps.log").write_text("INFO 1 fine\nERROR 2 a request failed\nmore\n")
    (serve / "access_caps.log").write_text("ERROR is no matter here\n")
    (tmp_path / "worker-1.err").write_text("noise\nTraceback (most recent call last):\n  x\n")
    found = find_complaints(tmp_path)
    assert found.num_lines == 2
    assert found.examples[0] == "replica_caps.log: ERROR 2 a request failed | more"
    assert found.examples[1].startswith("worker-1.err: Traceback")


def test_a_spike_does_not_move_the_slope() -> None:
    values = [1.0] * 50
    values[-1] = 1000.0
    assert slope(range(50), values) == 0


@pytest.mark.slow
def test_every_kind_of_request_is_whole_and_has_a_right_outcome(tmp_path: Path) -> None:
    images = tmp_path / "photos"
    images.mkdir()
    for number in range(20):
        (images / f"{number:02}.jpg").write_bytes(encode(size=(60, 40)))
    large = write_large(tmp_path / "large", images).parent
    mix = build_mix(MODELS, images, large, ("here", 80))
    assert len({kind.name for kind in mix}) == len(mix)
    for kind in mix:
        assert kind.right
        assert kind.weight > 0
        for request in kind.requests:
            head, _, body = request.encode("here").partition(b"\r\n\r\n")
            assert f"Content-Length: {len(body)}".encode() in head
    paths = {urlsplit(request.path).path for kind in mix for request in kind.requests}
    assert paths >= {f"{MODELS['dynamic']}/classify", f"{MODELS['generic']}/infer", "/"}


def test_labels_are_renamed_and_sometimes_set_back_to_a_revision_that_exists() -> None:
    bodies = []
    for number in range(1, 11):
        (request,) = label_write("/m", "good", number, "key").requests
        bodies.append((request.method, request.path, json.loads(request.body)))
    renames = [body["edits"][0]["name"] for _, path, body in bodies if path == "/m/labels"]
    assert len(set(renames)) == len(renames) == 8
    back = [body["revision"] for method, path, body in bodies if path.endswith("/rollback")]
    assert back == [3, 8]


def test_a_body_without_end_is_sent_until_it_is_refused() -> None:
    outcomes = {}
    for manner in ("declares too much", "sends too much"):
        with refusing_server() as (port, received):
            kind = Kind(manner, 1, (Request("/x", b"x"),), frozenset({"413"}), manner)
            seen = Seen()
            asyncio.run(Sender(("127.0.0.1", port), [kind], seen).send(kind))
        outcomes[manner] = (dict(seen.outcomes[manner]), seen.wrong)
        head = received[0].partition(b"\r\n\r\n")[0].lower()
        assert (b"chunked" in head) == (manner == "sends too much")
        assert (str(TOO_LARGE).encode() in head) == (manner == "declares too much")
        assert head.count(b"content-length") == (manner == "declares too much")
    assert set(map(str, outcomes.values())) == {"({'413': 1}, 0)"}


@contextmanager
def refusing_server() -> Iterator[tuple[int, list[bytes]]]:
    """Answer 413 after a buffer of HAProxy, to one client, and read on until it stops; yield the
    port and what came first.
    """
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                taken = 0
                while chunk := connection.recv(1 << 16):
                    received.append(chunk)
                    if taken < BUFFER_BYTES <= taken + len(chunk):
                        connection.sendall(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")
                    taken += len(chunk)

        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname()[1], received
        thread.join()


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
