"""The messages of the protocol's gRPC form, built from a table of names, numbers and types.

Numbers and types are those of the public protocol, with Triton's additions: they are what goes over
the wire, so any client of `inference.GRPCInferenceService` understands them. A table instead of
generated code: that would be bound to the versions of protobuf that it was made for, and
`tritonclient[grpc]`, which brings some, cannot be installed beside Ray.

Fields that nobody here reads or writes are left out: a reader skips what it does not know.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

# protobuf ships no types
from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)

PACKAGE = "inference"
FILE = "sightline/open_inference.proto"  # the name under which gRPC's reflection shows it

# Message -> field -> number and type. A type is one of SCALARS, ENUMS or a message; `type*` is a
# repeated field, `{type}` a map from strings. A field named after a dot belongs to a oneof.
MESSAGES: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": (1, "bool")},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": (1, "bool")},
    "ModelReadyRequest": {"name": (1, "string"), "version": (2, "string")},
    "ModelReadyResponse": {"ready": (1, "bool")},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {
        "name": (1, "string"),
        "version": (2, "string"),
        "extensions": (3, "string*"),
    },
    "ModelMetadataRequest": {"name": (1, "string"), "version": (2, "string")},
    "TensorMetadata": {"name": (1, "string"), "datatype": (2, "string"), "shape": (3, "int64*")},
    "ModelMetadataResponse": {
        "name": (1, "string"),
        "versions": (2, "string*"),
        "platform": (3, "string"),
        "inputs": (4, "TensorMetadata*"),
        "outputs": (5, "TensorMetadata*"),
    },
    "InferParameter": {
        "choice.bool_param": (1, "bool"),
        "choice.int64_param": (2, "int64"),
        "choice.string_param": (3, "string"),
        "choice.double_param": (4, "double"),
        "choice.uint64_param": (5, "uint64"),
    },
    "InferTensorContents": {
        "uint_contents": (4, "uint32*"),
        "fp32_contents": (6, "float*"),
        "bytes_contents": (8, "bytes*"),
    },
    "InferInputTensor": {
        "name": (1, "string"),
        "datatype": (2, "string"),
        "shape": (3, "int64*"),
        "parameters": (4, "{InferParameter}"),
        "contents": (5, "InferTensorContents"),
    },
    "InferRequestedOutputTensor": {
        "name": (1, "string"),
        "parameters": (2, "{InferParameter}"),
    },
    "ModelInferRequest": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "id": (3, "string"),
        "parameters": (4, "{InferParameter}"),
        "inputs": (5, "InferInputTensor*"),
        "outputs": (6, "InferRequestedOutputTensor*"),
        "raw_input_contents": (7, "bytes*"),
    },
    "InferOutputTensor": {
        "name": (1, "string"),
        "datatype": (2, "string"),
        "shape": (3, "int64*"),
        "parameters": (4, "{InferParameter}"),
        "contents": (5, "InferTensorContents"),
    },
    "ModelInferResponse": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "id": (3, "string"),
        "parameters": (4, "{InferParameter}"),
        "outputs": (5, "InferOutputTensor*"),
        "raw_output_contents": (6, "bytes*"),
    },
    "ModelStreamInferResponse": {
        "error_message": (1, "string"),
        "infer_response": (2, "ModelInferResponse"),
    },
    "ModelConfigRequest": {"name": (1, "string"), "version": (2, "string")},
    "ModelInput": {
        "name": (1, "string"),
        "data_type": (2, "DataType"),
        "format": (3, "Format"),
        "dims": (4, "int64*"),
        "optional": (8, "bool"),
    },
    "ModelOutput": {
        "name": (1, "string"),
        "data_type": (2, "DataType"),
        "dims": (3, "int64*"),
        "label_filename": (4, "string"),
    },
    "ModelConfig": {
        "name": (1, "string"),
        "platform": (2, "string"),
        "max_batch_size": (4, "int32"),
        "input": (5, "ModelInput*"),
        "output": (6, "ModelOutput*"),
        "backend": (17, "string"),
    },
    "ModelConfigResponse": {"config": (1, "ModelConfig")},
    "ModelStatisticsRequest": {"name": (1, "string"), "version": (2, "string")},
    "StatisticDuration": {"count": (1, "uint64"), "ns": (2, "uint64")},
    "InferStatistics": {
        "success": (1, "StatisticDuration"),
        "fail": (2, "StatisticDuration"),
        "queue": (3, "StatisticDuration"),
        "compute_input": (4, "StatisticDuration"),
        "compute_infer": (5, "StatisticDuration"),
        "compute_output": (6, "StatisticDuration"),
        "cache_hit": (7, "StatisticDuration"),
        "cache_miss": (8, "StatisticDuration"),
    },
    "InferBatchStatistics": {
        "batch_size": (1, "uint64"),
        "compute_input": (2, "StatisticDuration"),
        "compute_infer": (3, "StatisticDuration"),
        "compute_output": (4, "StatisticDuration"),
    },
    "ModelStatistics": {
        "name": (1, "string"),
        "version": (2, "string"),
        "last_inference": (3, "uint64"),
        "inference_count": (4, "uint64"),
        "execution_count": (5, "uint64"),
        "inference_stats": (6, "InferStatistics"),
        "batch_stats": (7, "InferBatchStatistics*"),
    },
    "ModelStatisticsResponse": {"model_stats": (1, "ModelStatistics*")},
    "RepositoryIndexRequest": {"repository_name": (1, "string"), "ready": (2, "bool")},
    "ModelIndex": {
        "name": (1, "string"),
        "version": (2, "string"),
        "state": (3, "string"),
        "reason": (4, "string"),
    },
    "RepositoryIndexResponse": {"models": (1, "ModelIndex*")},
    "ModelRepositoryParameter": {
        "choice.bool_param": (1, "bool"),
        "choice.int64_param": (2, "int64"),
        "choice.string_param": (3, "string"),
        "choice.bytes_param": (4, "bytes"),
    },
    "RepositoryModelLoadRequest": {
        "repository_name": (1, "string"),
        "model_name": (2, "string"),
        "parameters": (3, "{ModelRepositoryParameter}"),
    },
    "RepositoryModelLoadResponse": {},
    "RepositoryModelUnloadRequest": {
        "repository_name": (1, "string"),
        "model_name": (2, "string"),
        "parameters": (3, "{ModelRepositoryParameter}"),
    },
    "RepositoryModelUnloadResponse": {},
    "Unread": {},  # a request that is refused whatever stands in it
}
ENUMS: Mapping[str, tuple[str, ...]] = {
    # The place of a name is its number.
    "Format": ("FORMAT_NONE", "FORMAT_NHWC", "FORMAT_NCHW"),
    "DataType": (
        *("TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64"),
        *("TYPE_INT8", "TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32"),
        *("TYPE_FP64", "TYPE_STRING", "TYPE_BF16"),
    ),
}
SCALARS = ("bool", "int32", "int64", "uint32", "uint64", "float", "double", "string", "bytes")

# RPC -> request and response.
CALLS: Mapping[str, tuple[str, str]] = {
    **{
        name: (f"{name}Request", f"{name}Response")
        for name in (
            *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata"),
            *("ModelInfer", "ModelConfig", "ModelStatistics", "RepositoryIndex"),
            *("RepositoryModelLoad", "RepositoryModelUnload"),
        )
    },
    **{
        name: ("Unread", "Unread")
        for name in (
            *("SystemSharedMemoryStatus", "SystemSharedMemoryRegister"),
            *("SystemSharedMemoryUnregister", "CudaSharedMemoryStatus"),
            *("CudaSharedMemoryRegister", "CudaSharedMemoryUnregister"),
            *("TraceSetting", "LogSettings"),
        )
    },
}
# These take a stream of requests and answer each in a stream.
STREAM_CALLS: Mapping[str, tuple[str, str]] = {
    "ModelStreamInfer": ("ModelInferRequest", "ModelStreamInferResponse")
}


def message(name: str) -> Any:
    """Return the class of a message of the table."""
    return _CLASSES[name]


def _describe() -> Any:
    """Return the table as protobuf's own description of a file."""
    file = descriptor_pb2.FileDescriptorProto(name=FILE, package=PACKAGE, syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in MESSAGES.items():
        entry = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            _add_field(entry, field, number, kind)
    service = file.service.add(name="GRPCInferenceService")
    for call, (request, response) in {**CALLS, **STREAM_CALLS}.items():
        streams = call in STREAM_CALLS
        service.method.add(
            name=call,
            input_type=f".{PACKAGE}.{request}",
            output_type=f".{PACKAGE}.{response}",
            client_streaming=streams,
            server_streaming=streams,
        )
    return file


def _add_field(entry: Any, name: str, number: int, kind: str) -> None:
    choice, _, name = name.rpartition(".")
    if kind.startswith("{"):
        kind = f"{_add_map(entry, name, kind[1:-1])}*"
    field = entry.field.add(name=name, number=number, label=3 if kind.endswith("*") else 1)
    _set_type(field, kind.removesuffix("*"), entry.name)
    if choice:
        if not entry.oneof_decl:
            entry.oneof_decl.add(name=choice)
        field.oneof_index = 0


def _add_map(entry: Any, name: str, kind: str) -> str:
    """Add what a map is over the wire: a message of a key and a value. Returns its name."""
    pair = entry.nested_type.add(name=f"{name.title()}Entry")
    pair.options.map_entry = True
    for part, (number, part_kind) in {"key": (1, "string"), "value": (2, kind)}.items():
        _set_type(pair.field.add(name=part, number=number, label=1), part_kind, entry.name)
    return str(pair.name)


def _set_type(field: Any, kind: str, owner: str) -> None:
    if kind in SCALARS:
        field.type = getattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{kind.upper()}")
        return
    is_enum = kind in ENUMS
    field.type = field.TYPE_ENUM if is_enum else field.TYPE_MESSAGE
    is_nested = not is_enum and kind not in MESSAGES
    field.type_name = f".{PACKAGE}.{owner}.{kind}" if is_nested else f".{PACKAGE}.{kind}"


def _build() -> dict[str, Any]:
    """Make the classes. They are attributes of this module, because a message travels by pickle
    where a request is handed on between processes.
    """
    pool = descriptor_pool.Default()  # where gRPC's reflection looks
    pool.AddSerializedFile(_describe().SerializeToString())
    classes = {}
    for name in MESSAGES:
        made = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
        made.__module__ = __name__
        setattr(sys.modules[__name__], name, made)
        classes[name] = made
    return classes


_CLASSES = _build()
