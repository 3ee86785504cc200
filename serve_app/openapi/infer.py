"""The Open Inference Protocol's calls in a model's OpenAPI document: infer, metadata, readiness,
configuration, statistics.
"""

from __future__ import annotations

import json
from typing import Any

from serve_app.documents import document_names
from serve_app.model import ServedModel
from serve_app.oip.infer_json import LENGTH_HEADER
from serve_app.oip.signature import WHOLE, metadata_of, views_of
from serve_app.openapi.parts import (
    BINARY,
    JSON,
    PIXEL,
    UPLOAD_CODES,
    Schema,
    answer,
    body,
    closed,
    halves,
    header,
    json_answer,
    operation,
    ref,
    unit_vector,
)
from serve_app.statistics import BATCH_PARTS, PARTS, model_statistics

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
# Of one value of an input in JSON, by the datatype.
VALUES: dict[str, Schema] = {
    "BYTES": {"type": "string", "contentEncoding": "base64"},
    "UINT8": {"type": "integer", "minimum": 0, "maximum": 255},
    "FP32": {"type": "number", "minimum": 0, "maximum": 255},
}
DATATYPES = ("FP32", "BYTES")  # of outputs


def infer_operation(model: ServedModel, root: str) -> dict[str, Any]:
    """Return the infer call."""
    good = answer(
        f"The outputs; in bytes, JSON of the length that `{LENGTH_HEADER}` tells and the tensors "
        "after it, where binary outputs were asked for",
        {
            JSON: {"schema": ref("InferAnswer"), "example": _example_answer(model)},
            BINARY: {},
        },
    )
    good["headers"] = {
        LENGTH_HEADER: {
            "description": "length of the JSON, where bytes follow it",
            "schema": {"type": "string", "pattern": "^[0-9]+$"},
        }
    }
    inputs = ", ".join(f"`{t['name']}` ({t['datatype']})" for t in _metadata(model)["inputs"])
    length = header(
        LENGTH_HEADER,
        {**COUNT, "description": "0: the whole body is one encoded image"},
        "length of the JSON at the head of the body, where the bytes of tensors follow it",
    )
    has_map = model.kind.has_label_map
    more_codes = ("bad_encoding", *(() if has_map else ("bad_parameter",)))
    example = json.dumps(_example_request(), separators=(",", ":"))
    return operation(
        "infer",
        "Run images given as tensors, by the Open Inference Protocol",
        f"Give one input: {inputs}. The first image that cannot be read is the request's error.",
        tag="protocol",
        scope="infer",
        parameters=[length],
        request=body(
            "JSON, or JSON with the bytes of tensors behind it; the Content-Type is not looked at",
            {
                JSON: {"schema": ref("InferRequest"), "example": _example_request()},
                BINARY: {},
            },
        ),
        answers={200: good},
        codes={
            400: ("bad_request", "bad_json", "bad_base64", "no_image", *more_codes),
            408: UPLOAD_CODES[408],
            413: ("image_too_large", "too_many_images", "body_too_large"),
            415: ("image_type", "content_encoding"),
            422: ("image_decode",),
            429: ("queue_full",),
            500: ("engine", "internal"),
            503: ("deadline",),
            **({409: ("label_revision",)} if has_map else {}),
        },
        curl=f"curl -H 'Content-Type: {JSON}' -d '{example}' '{{server}}{root}/infer'",
    )


def protocol_operations(model: ServedModel, root: str) -> dict[str, dict[str, Any]]:
    """Return the calls that tell of a model."""
    name, version = model.manifest.name, str(model.manifest.version)
    metadata = _metadata(model)
    stats = {"model_stats": [model_statistics(name, version, ())], "replicas": 1}

    def get(call: str, summary: str, answers: dict[int, dict[str, Any]], **more: Any) -> Any:
        path = more.pop("path")
        curl = f"curl '{{server}}{root}{path}'"
        tag = "protocol"
        return {"get": operation(call, summary, tag=tag, answers=answers, curl=curl, **more)}

    return {
        "/": get(
            "metadata",
            "Inputs and outputs",
            {200: json_answer("The metadata", ref("Metadata"), metadata)},
            scope="infer",
            path="",
        ),
        "/ready": get(
            "ready",
            "Whether the model can be asked",
            {200: json_answer("It can", ref("Ready"), {"name": name, "ready": True})},
            codes={503: ("closed", "engine")},
            path="/ready",
        ),
        "/config": get(
            "config",
            "Configuration in Triton's form, and what this server adds",
            {200: answer("The configuration", {JSON: {"schema": ref("Config")}})},
            scope="infer",
            path="/config",
        ),
        "/stats": get(
            "stats",
            "Counters of all replicas",
            {200: json_answer("The counters", ref("Stats"), stats)},
            scope="infer",
            path="/stats",
        ),
        "/openapi.json": get(
            "openapi",
            "This document",
            {200: answer("OpenAPI 3.1", {JSON: {"schema": {"type": "object"}}})},
            path="/openapi.json",
        ),
    }


def protocol_schemas(model: ServedModel) -> dict[str, Schema]:
    """Return the schemas of the calls above."""
    name, version = model.manifest.name, str(model.manifest.version)
    metadata = _metadata(model)
    shape = {"type": "array", "items": {"type": "integer", "minimum": -1}, "minItems": 1}
    of_model = {"name": {"const": name}, "platform": TEXT}
    inputs = [_input(model, tensor) for tensor in metadata["inputs"]]
    most_outputs = len(metadata["outputs"])
    parameters: dict[str, Schema] = {"binary_data_output": {"type": "boolean", "default": False}}
    if model.kind.has_label_map:
        parameters["min_revision"] = {**COUNT, "description": "of the labels; 409 if not to be had"}
    asked = {
        "type": "array",
        "items": _asked_output(model, metadata["outputs"]),
        "maxItems": most_outputs,
        "description": "all outputs, if left out",
    }
    told = {
        "type": "array",
        "items": {"oneOf": [_output(model, tensor) for tensor in metadata["outputs"]]},
        "minItems": 1,
        "maxItems": most_outputs,
    }
    tensors = {
        "type": "array",
        "items": closed({"name": TEXT, "datatype": TEXT, "shape": shape}),
        "minItems": 1,
    }
    return {
        "InferRequest": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": TEXT,
                "parameters": {"type": "object", "properties": parameters},
                "inputs": {
                    "type": "array",
                    "items": {"oneOf": inputs},
                    "minItems": 1,
                    "maxItems": 1,
                },
                "outputs": asked,
            },
        },
        "InferAnswer": closed(
            {
                "model_name": {"const": name},
                "model_version": {"const": version},
                "id": TEXT,
                "parameters": {"type": "object"},
                "outputs": told,
            },
            {"id", "parameters"},
        ),
        "Metadata": closed(
            {
                **of_model,
                "versions": {"type": "array", "items": TEXT, "minItems": 1},
                "inputs": {**tensors, "maxItems": len(metadata["inputs"])},
                "outputs": {**tensors, "maxItems": most_outputs},
            }
        ),
        "Ready": closed({"name": {"const": name}, "ready": {"const": True}}),
        "Config": _config_schema(model, of_model),
        "Stats": closed(
            {"model_stats": {"type": "array", "items": statistics_schema()}, "replicas": COUNT}
        ),
    }


def statistics_schema() -> Schema:
    """Return the schema of the counters of one model."""
    duration = closed({"count": COUNT, "ns": COUNT})
    return closed(
        {
            "name": TEXT,
            "version": TEXT,
            "last_inference": {**COUNT, "description": "milliseconds since 1970; 0 for none"},
            "inference_count": COUNT,
            "execution_count": COUNT,
            "inference_stats": closed(dict.fromkeys(PARTS, duration)),
            "batch_stats": {
                "type": "array",
                "items": closed({"batch_size": COUNT, **dict.fromkeys(BATCH_PARTS, duration)}),
            },
        }
    )


def _metadata(model: ServedModel) -> dict[str, Any]:
    """Return what the model says of itself in the protocol."""
    return metadata_of(model, views_of(model.manifest, model.kind)[WHOLE])


def _input(model: ServedModel, tensor: dict[str, Any]) -> Schema:
    batch = {"type": "integer", "minimum": 1, "maximum": model.limits.max_images}
    dims: list[Schema] = [{"const": size} for size in tensor["shape"][1:]]
    # An image may leave its second dimension out.
    least = 1 if tensor["datatype"] == "BYTES" else 1 + len(dims)
    return {
        "type": "object",
        "properties": {
            "name": {"const": tensor["name"]},
            "datatype": {"const": tensor["datatype"]},
            "shape": {
                "type": "array",
                "prefixItems": [batch, *dims],
                "items": False,
                "minItems": least,
            },
            "parameters": {"type": "object", "properties": {"binary_data_size": COUNT}},
            "data": {
                "type": "array",
                "description": "flat or nested; left out where `binary_data_size` bytes follow",
                "items": {"anyOf": [VALUES[tensor["datatype"]], {"type": "array"}]},
            },
        },
        "required": ["name", "datatype", "shape"],
    }


def _asked_output(model: ServedModel, outputs: list[dict[str, Any]]) -> Schema:
    parameters: dict[str, Schema] = {"binary_data": {"type": "boolean"}}
    if model.kind.has_classes:
        about = "of `probabilities`: the best so many, as `value:index:label`"
        parameters["classification"] = {**COUNT, "description": about}
    names = [tensor["name"] for tensor in outputs]
    return {
        "type": "object",
        "properties": {
            "name": {"type": "string", "enum": names},
            "parameters": {"type": "object", "properties": parameters},
        },
        "required": ["name"],
    }


def _output(model: ServedModel, tensor: dict[str, Any]) -> Schema:
    values: Schema = TEXT if tensor["datatype"] == "BYTES" else {"type": "number"}
    datatype: Schema = {"const": tensor["datatype"]}
    if tensor["name"] == "probabilities":  # or `value:index:label`, where it was asked for so
        values, datatype = {"type": ["number", "string"]}, {"enum": list(DATATYPES)}
    return closed(
        {
            "name": {"const": tensor["name"]},
            "datatype": datatype,
            "shape": {"type": "array", "items": COUNT, "minItems": 1, "maxItems": 2},
            "data": {"type": "array", "items": values},
            "parameters": {"type": "object", "properties": {"binary_data_size": COUNT}},
        },
        {"data", "parameters"},
    )


def _config_schema(model: ServedModel, of_model: dict[str, Schema]) -> Schema:
    shape = {"type": "array", "items": {"type": "integer", "minimum": 1}}
    tensor = {"name": TEXT, "data_type": TEXT, "dims": shape}
    optional = {**tensor, "optional": {"type": "boolean"}, "format": TEXT}
    names = ("bundle", "created", "preprocess", "limits", "engine", "proof")
    seconds: Schema = {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}}
    own: dict[str, Schema] = {**{name: {} for name in names}, "start": seconds}
    facts: dict[str, Schema] = {
        "kind": {"const": model.kind.name},
        "calls": {"const": sorted(model.kind.calls)},
        "has_label_map": {"const": model.kind.has_label_map},
        "version": {"const": model.manifest.version},
        "classes": {"const": [entry.name for entry in model.manifest.classes]},
        "documents": {"const": document_names(model.manifest)},
        **own,
    }
    if model.kind.has_label_map:
        facts["labels"] = {"type": "object"}
    return {
        "type": "object",
        "properties": {
            **of_model,
            "backend": TEXT,
            "max_batch_size": {"const": model.limits.max_images},
            "input": {"type": "array", "items": closed(optional, {"optional", "format"})},
            "output": {"type": "array", "items": closed(tensor)},
            "sightline": {"type": "object", "properties": facts, "required": list(facts)},
        },
        "required": ["name", "platform", "backend", "max_batch_size", "input", "output"],
    }


def _example_request() -> dict[str, Any]:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [PIXEL]}
    return {"inputs": [tensor]}


def _example_answer(model: ServedModel) -> dict[str, Any]:
    name = model.kind.outputs[0]
    width = getattr(model.manifest.outputs, name)
    values = halves(width) if name == "probabilities" else unit_vector(width)
    tensor = {"name": name, "datatype": "FP32", "shape": [1, width], "data": values}
    about = {"model_name": model.manifest.name, "model_version": str(model.manifest.version)}
    return {**about, "outputs": [tensor]}
