"""Clients that ask over gRPC, as those of `load` do over HTTP: nothing is tried again, and what
became of every request is written down.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc  # type: ignore[import-untyped]

from serve_app.oip.grpc_service import SERVICE
from serve_app.oip.messages import message
from tests.faults.load import (
    CLIENTS,
    CUT,
    OK,
    PATIENCE_SECONDS,
    REFUSED,
    RESET,
    SILENT,
    Outcome,
    Seen,
    check_asked_until,
)
from tests.faults.site import NAME
from tests.serve_app.grpc_client import image_request

# A channel of its own for each client, and none that asks again behind our back.
OPTIONS = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]


@contextmanager
def grpc_load(
    address: str, image: bytes, *, clients: int = CLIENTS, per_second: float = 90
) -> Iterator[Seen]:
    """Keep asking for the length of the context; every request is answered or given up before it
    ends.
    """
    seen, done = Seen(), threading.Event()
    period = clients / per_second
    with ThreadPoolExecutor(clients, "load") as pool:
        asking = [
            pool.submit(_ask_until, done, address, image, period, number / per_second, seen)
            for number in range(clients)
        ]
        try:
            yield seen
        finally:
            done.set()
            ended = time.monotonic()
            for each in asking:
                each.result()
    check_asked_until(ended, seen)


def _ask_until(
    done: threading.Event, address: str, image: bytes, period: float, wait: float, seen: Seen
) -> None:
    request = image_request(image, model=NAME)
    with grpc.insecure_channel(address, options=OPTIONS) as channel:
        ask = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=lambda each: each.SerializeToString(),
            response_deserializer=message("ModelInferResponse").FromString,
        )
        due = time.monotonic() + wait
        while not done.wait(max(0.0, due - time.monotonic())):
            asked = time.monotonic()
            due = max(due + period, asked)
            kind, said = _exchange(ask, request)
            seen.outcomes.append(Outcome(asked, time.monotonic(), kind, said=said))


def _exchange(ask: Any, request: Any) -> tuple[str, str]:
    try:
        answer = ask(request, timeout=PATIENCE_SECONDS, metadata=(("application", NAME),))
    except grpc.RpcError as error:
        status: Any = error
        said = f"{status.code().name}: {status.details()}"[:200]
        if status.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            return SILENT, said
        if status.code() == grpc.StatusCode.UNAVAILABLE:
            return (REFUSED if "connect" in said else RESET), said
        return status.code().name, said
    if not answer.raw_output_contents:
        return CUT, f"an answer without outputs: {answer}"[:200]
    return OK, ""
