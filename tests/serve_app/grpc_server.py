"""The calls of gRPC on a port of this machine, without Serve."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc  # type: ignore[import-untyped]

from serve_app.keys import Keys
from serve_app.model import ServedModel
from serve_app.oip.grpc_calls import GrpcCalls
from serve_app.oip.grpc_service import add_inference_service
from serve_app.oip.messages import STREAM_CALLS
from serve_app.peers import Alone
from tests.serve_app.grpc_client import GrpcClient


class Calls(GrpcCalls):
    """The calls as a replica has them."""

    def __init__(self, model: ServedModel, keys: Keys) -> None:
        self._model, self._keys, self._peers = model, keys, Alone(model)


class Servicer:
    """Hands a call over as Serve does: by name, with the context as an argument of that name."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._calls, name)

        async def answer(request: Any, context: Any) -> Any:
            return await call(request, grpc_context=context)

        async def answers(requests: Any, context: Any) -> AsyncIterator[Any]:
            async for response in call(requests, grpc_context=context):
                yield response

        return answers if name in STREAM_CALLS else answer


def serve(model: ServedModel, keys: Keys) -> Iterator[str]:
    """Answer on a port of this machine, in a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    async def start() -> tuple[Any, int]:
        server = grpc.aio.server()
        add_inference_service(Servicer(Calls(model, keys)), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    server, port = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    yield f"127.0.0.1:{port}"
    asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)


def connected(model: ServedModel) -> Iterator[GrpcClient]:
    """Connect to a model that anybody may score with."""
    for address in serve(model, Keys()):
        client = GrpcClient(address)
        yield client
        client.close()
