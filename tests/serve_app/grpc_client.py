"""A plain gRPC client of the service, made of nothing but grpcio and our own messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import pytest

from serve_app.oip.grpc_service import SERVICE
from serve_app.oip.messages import CALLS, STREAM_CALLS, message
from tests.serve_app.test_oip import strings, with_length

SECONDS = 30
ALL_BYTES = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class GrpcClient:
    """Calls a server by the names of the protocol."""

    def __init__(self, address: str, metadata: Mapping[str, str] | None = None) -> None:
        self._channel = grpc.insecure_channel(address, options=ALL_BYTES)
        self._metadata = tuple((metadata or {}).items())

    def call(self, name: str, request: Any = None, /, **fields: Any) -> Any:
        """Call with a request, or with one made of fields. Raises `grpc.RpcError`."""
        asked, answered = CALLS[name]
        ask = self._channel.unary_unary(
            f"/{SERVICE}/{name}",
            request_serializer=lambda each: each.SerializeToString(),
            response_deserializer=message(answered).FromString,
        )
        request = message(asked)(**fields) if request is None else request
        return ask(request, timeout=SECONDS, metadata=self._metadata)

    def trailing(self, name: str, request: Any) -> dict[str, str]:
        """Call and return the trailing metadata, whatever the answer is."""
        asked = self._channel.unary_unary(
            f"/{SERVICE}/{name}", request_serializer=lambda each: each.SerializeToString()
        )
        try:
            _, call = asked.with_call(request, timeout=SECONDS, metadata=self._metadata)
        except grpc.RpcError as error:
            call = error
        return dict(call.trailing_metadata() or ())

    def stream(self, requests: Sequence[Any]) -> Iterator[Any]:
        """Send requests through one stream and yield what comes back."""
        yield from self.stream_on(iter(requests))

    def stream_on(self, requests: Iterator[Any], *, seconds: float = SECONDS) -> Iterator[Any]:
        """Send requests through one stream, each as it comes, and yield what comes back."""
        _, answered = STREAM_CALLS["ModelStreamInfer"]
        ask = self._channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=lambda each: each.SerializeToString(),
            response_deserializer=message(answered).FromString,
        )
        yield from ask(requests, timeout=seconds, metadata=self._metadata)

    def refused(self, code: str, name: str, request: Any = None, /, **fields: Any) -> str:
        """Assert that a call is refused with a code, and return `word: sentence`."""
        with pytest.raises(grpc.RpcError) as caught:
            self.call(name, request, **fields)
        error: Any = caught.value
        assert error.code() == grpc.StatusCode[code], error
        words = dict(error.trailing_metadata() or ())
        return f"{words.get('sightline-code')}: {error.details()}"

    def close(self) -> None:
        """End the connection."""
        self._channel.close()


def image_request(*images: bytes, model: str = "tiny", **fields: Any) -> Any:
    """Return a request for encoded images, as raw contents."""
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(images), 1]}
    raw = with_length(*images)
    return infer_request(tensor, raw, model_name=model, **fields)


def infer_request(tensor: Mapping[str, Any], *raw: bytes, **fields: Any) -> Any:
    """Return a request with one input."""
    fields = {"model_name": "tiny", **fields}
    return message("ModelInferRequest")(inputs=[tensor], raw_input_contents=raw, **fields)


def outputs_of(response: Any) -> dict[str, npt.NDArray[Any]]:
    """Read the raw outputs of a response, by name."""
    assert len(response.outputs) == len(response.raw_output_contents)
    found = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        assert not output.HasField("contents")
        values = strings(raw) if output.datatype == "BYTES" else np.frombuffer(raw, "<f4")
        found[output.name] = np.array(values).reshape(output.shape)
    return found
