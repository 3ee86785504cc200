"""Streams over gRPC that stay open while nothing comes: each is ended some time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest

import serve_app.oip.grpc_streams
from cluster.resilience import resilience_environment
from serve_app.app import ROOM
from serve_app.model import ServedModel
from tests.serve_app.conftest import encode
from tests.serve_app.grpc_client import GrpcClient, image_request
from tests.serve_app.grpc_server import Calls, connected


@pytest.fixture
def triton(model: ServedModel) -> Iterator[GrpcClient]:
    yield from connected(model)


def open_stream(triton: GrpcClient, requests: queue.SimpleQueue[Any]) -> list[Any]:
    """Send requests as they come, None for their end; return the answers and what ended it."""
    answers: list[Any] = []
    try:
        for answer in triton.stream_on(iter(requests.get, None)):
            answers.append(answer)
    except grpc.RpcError as error:
        answers.append(error)
    return answers


@pytest.mark.parametrize("is_leaving", [True, False])
def test_a_stream_on_which_nothing_comes_is_ended(
    triton: GrpcClient, monkeypatch: pytest.MonkeyPatch, is_leaving: bool
) -> None:
    monkeypatch.setattr(serve_app.oip.grpc_streams, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(serve_app.oip.grpc_streams, "IDLE_SECONDS", 30 if is_leaving else 0.5)
    leaves = threading.Event()
    monkeypatch.setattr(Calls, "is_leaving", lambda _: leaves.is_set())
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    requests.put(image_request(encode(1), id="a"))
    if is_leaving:
        threading.Timer(0.5, leaves.set).start()
    began = time.monotonic()
    answer, ended = open_stream(triton, requests)
    assert time.monotonic() - began < 10
    requests.put(None)
    assert answer.infer_response.id == "a"
    code, word, sentence = (
        ("UNAVAILABLE", "closed", "this replica leaves; open another stream")
        if is_leaving
        else ("DEADLINE_EXCEEDED", "idle_stream", "no request came for 0.5 s; open another stream")
    )
    assert ended.code() == grpc.StatusCode[code]
    assert dict(ended.trailing_metadata())["sightline-code"] == word
    assert ended.details() == sentence
    # Another one is answered, as long as something comes.
    assert [each.infer_response.id for each in triton.stream([image_request(encode(1), id="b")])]


def test_a_stream_on_which_much_comes_is_ended_as_well_when_its_replica_leaves(
    triton: GrpcClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It kept the replica until Serve killed it, and lost the request that was under way."""
    monkeypatch.setattr(serve_app.oip.grpc_streams, "LOOK_SECONDS", 0.3)
    leaves = threading.Event()
    monkeypatch.setattr(Calls, "is_leaving", lambda _: leaves.is_set())
    until = time.monotonic() + 5

    def requests() -> Iterator[Any]:
        while time.monotonic() < until:
            yield image_request(encode(1), id="a")
            time.sleep(0.02)

    answers = []
    left = float("inf")

    def ask() -> None:
        nonlocal left
        for answer in triton.stream_on(requests()):
            answers.append(answer)
            if len(answers) == 3:
                left = time.monotonic()
                leaves.set()

    with pytest.raises(grpc.RpcError) as ended:
        ask()
    assert 0.3 <= time.monotonic() - left < 20
    assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
    assert dict(ended.value.trailing_metadata())["sightline-code"] == "closed"
    assert len(answers) > 3  # it goes on for a while
    assert {each.error_message for each in answers} == {""}


def test_no_more_streams_are_open_than_leave_room_for_other_calls(
    triton: GrpcClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,096 streams on which nothing came kept readiness and metadata waiting for minutes."""
    monkeypatch.setattr(serve_app.oip.grpc_streams, "MAX_STREAMS", 2)
    queues = [queue.SimpleQueue[Any]() for _ in range(2)]
    streams = [triton.stream_on(iter(each.get, None)) for each in queues]
    for requests, answers in zip(queues, streams, strict=True):
        requests.put(image_request(encode(1), id="a"))
        assert next(answers).infer_response.id == "a"
    (refused,) = open_stream(triton, queue.SimpleQueue())
    assert refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(refused.trailing_metadata())["sightline-code"] == "queue_full"
    assert refused.details().startswith("this replica has 2 streams open already")
    assert triton.call("ServerReady").ready
    queues[0].put(None)
    assert not list(streams[0])
    assert [each.infer_response.id for each in triton.stream([image_request(encode(1), id="b")])]
    queues[1].put(None)
    assert not list(streams[1])


def test_streams_take_half_of_what_serve_has_room_for() -> None:
    assert serve_app.oip.grpc_streams.MAX_STREAMS * 2 <= ROOM


def test_a_stream_is_ended_before_haproxy_cuts_it_off() -> None:
    cut_off = float(resilience_environment()["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"])
    streams = serve_app.oip.grpc_streams
    assert cut_off > streams.IDLE_SECONDS + streams.LOOK_SECONDS
