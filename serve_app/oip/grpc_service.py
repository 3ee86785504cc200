"""The gRPC service that Serve's gRPC ingress offers: a serve file names `add_inference_service` in
its `grpc_servicer_functions`.

Serve puts itself in the place of the handlers: it calls the method of that name of the replica, and
serialises what it returns. Bytes are read here, before anybody is asked whether they may come: a
message of nothing but empty parts takes forty times its size in memory, so its parts are counted
before it is read. How large a message may be at all is set by `RAY_SERVE_GRPC_MAX_MESSAGE_SIZE`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from serve_app.oip.messages import CALLS, MESSAGES, PACKAGE, STREAM_CALLS, message

SERVICE = f"{PACKAGE}.GRPCInferenceService"
MAX_PARTS = 10_000  # fields, elements and dimensions
VARINT, BYTES = 0, 2  # wire types
FIXED = {1: 8, 5: 4}  # and those of a fixed size, in bytes


@dataclass(frozen=True)
class Unreadable:
    """What stands in the place of a request that is not read."""

    reason: str


def add_inference_service(servicer: Any, server: Any) -> None:
    """Add the service to a gRPC server, answered by the methods of `servicer`."""
    kinds = {
        grpc.unary_unary_rpc_method_handler: CALLS,
        grpc.stream_stream_rpc_method_handler: STREAM_CALLS,
    }
    handlers = {
        name: handler(
            getattr(servicer, name),
            request_deserializer=_reader(request),
            response_serializer=message(response).SerializeToString,
        )
        for handler, calls in kinds.items()
        for name, (request, response) in calls.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def _reader(name: str) -> Callable[[bytes], Any]:
    read = message(name).FromString

    def reader(raw: bytes) -> Any:
        try:
            if _num_parts(memoryview(raw), name, MAX_PARTS) > MAX_PARTS:
                return Unreadable(f"the message has more than {MAX_PARTS:,} parts")
            return read(raw)
        except (DecodeError, IndexError):
            return Unreadable(f"the message is no {name}")

    return reader


def _num_parts(raw: memoryview, name: str, most: int) -> int:
    """Return how many parts a message has, inner ones included; stops beyond `most`.

    Raises `IndexError` where it breaks off, and at a group: no message of ours has one, and what
    lies behind its start could not be counted.
    """
    inner, counted = INNER[name]
    position = num_parts = 0
    while position < len(raw) and num_parts <= most:
        num_parts += 1
        tag, position = _varint(raw, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == VARINT:
            _, position = _varint(raw, position)
        elif wire_type == BYTES:
            size, position = _varint(raw, position)
            if number in inner:
                part = raw[position : position + size]
                num_parts += _num_parts(part, inner[number], most - num_parts)
            elif number in counted:
                num_parts += size
            position += size
        elif wire_type in FIXED:
            position += FIXED[wire_type]
        else:
            raise IndexError(f"wire type {wire_type}")
    return num_parts


def _varint(raw: memoryview, position: int) -> tuple[int, int]:
    """Return a number and the position after it."""
    value = shift = 0
    while True:
        byte = raw[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80 or shift > 63:
            return value, position


def _inner(fields: Mapping[str, tuple[int, str]]) -> tuple[dict[int, str], set[int]]:
    """Return the fields that are messages themselves, and those whose bytes are elements."""
    kinds = {number: kind.removesuffix("*") for number, kind in fields.values()}
    inner = {number: kind for number, kind in kinds.items() if kind in MESSAGES}
    return inner, {number for number, kind in kinds.items() if kind == "int64"}


INNER = {name: _inner(fields) for name, fields in MESSAGES.items()}
