"""Wait until a server can be asked over gRPC. It knows nothing of the messages: this call's are
empty.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import grpc  # type: ignore[import-untyped]

SECONDS = 60


def wait_until_routed(address: str, applications: Sequence[str]) -> None:
    """Wait until HAProxy knows the gRPC side of applications: it may learn of it seconds after that
    of HTTP, by which they count as ready.
    """
    deadline = time.monotonic() + SECONDS
    for application in applications:
        while (problem := _ask(address, application)) is not None:
            assert time.monotonic() < deadline, problem
            time.sleep(0.2)


def _ask(address: str, application: str) -> Exception | None:
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        try:
            ask(b"", timeout=SECONDS, metadata=(("application", application),))
        except grpc.RpcError as error:
            found: Exception = error
            return found
    return None
