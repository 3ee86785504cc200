"""Our table of messages against those that Triton's client brings: names, numbers and types."""

from __future__ import annotations

import json
import os
from typing import Any

from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2, service_pb2

TYPES = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in vars(FieldDescriptor).items()
    if name.startswith("TYPE_")
}


def theirs() -> dict[str, Any]:
    """Return their messages by name, inner ones too."""
    found: dict[str, Any] = {}
    waiting = [
        *service_pb2.DESCRIPTOR.message_types_by_name.values(),
        *model_config_pb2.DESCRIPTOR.message_types_by_name.values(),
    ]
    while waiting:
        descriptor = waiting.pop()
        found[descriptor.name] = descriptor
        waiting += descriptor.nested_types
    return found


def told(field: Any) -> str:
    """Return a field's type in the words of our table."""
    inner = field.message_type or field.enum_type
    if field.message_type and field.message_type.GetOptions().map_entry:
        value = field.message_type.fields_by_name["value"]
        return f"{{{value.message_type.name if value.message_type else TYPES[value.type]}}}"
    name = inner.name if inner else TYPES[field.type]
    return f"{name}*" if field.is_repeated else name


def test_every_field_has_the_name_number_and_type_of_the_protocol() -> None:
    tables = json.loads(os.environ["SIGHTLINE_MESSAGES"])
    messages = theirs()
    assert len(tables["messages"]) > 30
    for name, fields in tables["messages"].items():
        if name == "Unread":
            continue
        known = {field.name: (field.number, told(field)) for field in messages[name].fields}
        for field, (number, kind) in fields.items():
            assert known[field.rpartition(".")[2]] == (number, kind), f"{name}.{field}"


def test_every_call_is_one_of_the_protocol() -> None:
    tables = json.loads(os.environ["SIGHTLINE_MESSAGES"])
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert {method.name for method in service.methods} == set(tables["calls"])
    for method in service.methods:
        request, response = tables["calls"][method.name]
        assert request in (method.input_type.name, "Unread")
        assert response in (method.output_type.name, "Unread")


def test_every_enum_has_the_numbers_of_the_protocol() -> None:
    enums = {
        "DataType": model_config_pb2.DESCRIPTOR.enum_types_by_name["DataType"],
        "Format": model_config_pb2.ModelInput.DESCRIPTOR.enum_types_by_name["Format"],
    }
    for name, values in json.loads(os.environ["SIGHTLINE_MESSAGES"])["enums"].items():
        assert {value.name: value.number for value in enums[name].values} == {
            value: number for number, value in enumerate(values)
        }
