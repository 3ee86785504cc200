"""Open Inference Protocol bodies to images, and outputs to bodies: JSON and binary tensors.

A body is JSON, or JSON followed by the bytes of its tensors in order; then the header
`Inference-Header-Content-Length` says how long the JSON is. Length 0 means no JSON at all: the
whole body is one encoded image. Clients disagree on Content-Type, so nothing here looks at it.

In JSON an encoded image is a base64 string, because JSON has no bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as shown  # a client's value, however long or deep it is
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from models.errors import SightlineError
from models.preprocess import Image, PreprocessSpec
from serve_app.config import Limits
from serve_app.errors import bad_request
from serve_app.limits import check_count, parse_whole
from serve_app.replies import BINARY, Reply
from serve_app.uploads import MAX_JSON_VALUES, decode_base64, parse_json

LENGTH_HEADER = "Inference-Header-Content-Length"
INPUTS = {"image": "BYTES", "pixels": "UINT8"}
MAX_DIMENSIONS = 4  # [B, H, W, 3]
_SIZE = struct.Struct("<I")  # the length before each element of a BYTES tensor


@dataclass(frozen=True)
class Wanted:
    """One output that the client asks for."""

    name: str
    is_binary: bool
    num_classes: int = 0  # > 0: the classification extension, `value:index:label` of the best ones


@dataclass(frozen=True)
class InferRequest:
    """What an infer call asks: encoded images or ready pixels, and which outputs."""

    id: str
    encoded: list[bytes]
    pixels: list[Image]
    wanted: list[Wanted]


@dataclass(frozen=True)
class Tensor:
    """One output, ready to be sent. `values` are float32, or strings for BYTES."""

    name: str
    values: npt.NDArray[np.float32] | Sequence[str]
    shape: tuple[int, ...]
    is_binary: bool

    @property
    def datatype(self) -> str:
        """Its name in the protocol."""
        return "FP32" if isinstance(self.values, np.ndarray) else "BYTES"


def parse_infer(
    body: bytes,
    header_length: str | None,
    outputs: Sequence[str],
    spec: PreprocessSpec,
    limits: Limits,
) -> InferRequest:
    """Read an infer request, or raise `RequestError` (400, 413) saying what is wrong with it."""
    if header_length is not None and header_length.strip() == "0":
        return InferRequest("", [body], [], [Wanted(name, True) for name in outputs])
    length = _json_length(header_length, len(body))
    # Ready pixels as nested lists are the most that a body can hold.
    max_values = limits.max_images * spec.height * spec.width * 4 + MAX_JSON_VALUES
    request = parse_json(memoryview(body)[:length], max_values)
    if not isinstance(request, dict):
        raise bad_request(f"expected a JSON object, got {type(request).__name__}", "bad_json")
    parameters = _parameters(request, "the request")
    wanted = _wanted(request.get("outputs"), parameters.get("binary_data_output") is True, outputs)
    name, tensor = _only_input(request)
    raw = _raw_of(tensor, name, memoryview(body)[length:])
    if name == "image":
        encoded = _read_encoded(tensor, raw, limits)
        return InferRequest(_id(request), encoded, [], wanted)
    pixels = _read_pixels(tensor, raw, spec, limits)
    return InferRequest(_id(request), [], pixels, wanted)


def infer_reply(name: str, version: int, request_id: str, tensors: Sequence[Tensor]) -> Reply:
    """Serialise outputs, each as JSON or as bytes after the JSON."""
    listed, buffers = [], []
    for tensor in tensors:
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
        }
        if tensor.is_binary:
            buffer = _to_bytes(tensor.values)
            entry["parameters"] = {"binary_data_size": len(buffer)}
            buffers.append(buffer)
        else:
            values = tensor.values
            entry["data"] = values.reshape(-1) if isinstance(values, np.ndarray) else values
        listed.append(entry)
    answer: dict[str, Any] = {"model_name": name, "model_version": str(version), "outputs": listed}
    if request_id:
        answer["id"] = request_id
    head = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    if not buffers:
        return Reply(head)
    headers = {LENGTH_HEADER: str(len(head))}
    return Reply(b"".join([head, *buffers]), content_type=BINARY, headers=headers)


def _json_length(header: str | None, body_length: int) -> int:
    if header is None:
        return body_length
    length = parse_whole(header)
    if length is None or length > body_length:
        raise bad_request(
            f"{LENGTH_HEADER} must be a whole number up to the body's {body_length} bytes, got "
            f"{shown(header)}"
        )
    return length


def _id(request: Mapping[str, Any]) -> str:
    value = request.get("id", "")
    if not isinstance(value, str):
        raise bad_request(f"'id' must be a string, got {type(value).__name__}")
    return value


def _parameters(holder: Mapping[str, Any], thing: str) -> Mapping[str, Any]:
    value = holder.get("parameters", {})
    if not isinstance(value, dict):
        raise bad_request(f"the parameters of {thing} must be an object")
    if "shared_memory_region" in value:
        raise bad_request(f"{thing} asks for shared memory, which this server does not offer")
    return value


def _wanted(listed: object, binary_by_default: bool, outputs: Sequence[str]) -> list[Wanted]:
    if listed is None or listed == []:
        return [Wanted(name, binary_by_default) for name in outputs]
    if not isinstance(listed, list):
        raise bad_request("'outputs' must be a list")
    if len(listed) > len(outputs):
        raise bad_request(f"'outputs' lists {len(listed)} outputs, the model has {len(outputs)}")
    wanted = [_one_wanted(item, binary_by_default, outputs) for item in listed]
    if len({one.name for one in wanted}) < len(wanted):
        raise bad_request("'outputs' names an output twice")
    return wanted


def _one_wanted(item: object, binary_by_default: bool, outputs: Sequence[str]) -> Wanted:
    name = item.get("name") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(name, str) or name not in outputs:
        raise bad_request(f"unknown output {shown(name)}; expected some of {', '.join(outputs)}")
    parameters = _parameters(item, f"output {name!r}")
    num_classes = parameters.get("classification", 0)
    if type(num_classes) is not int or num_classes < 0:
        raise bad_request(f"'classification' must be a whole number, got {shown(num_classes)}")
    if num_classes and name != "probabilities":
        raise bad_request(f"'classification' is for the output 'probabilities', not for {name!r}")
    return Wanted(name, parameters.get("binary_data", binary_by_default) is True, num_classes)


def _only_input(request: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise bad_request(f"'inputs' must be a list with one input, {' or '.join(INPUTS)}")
    tensor: Mapping[str, Any] = inputs[0]
    name = tensor.get("name")
    if not isinstance(name, str) or name not in INPUTS:
        raise bad_request(f"unknown input {shown(name)}; expected {' or '.join(INPUTS)}")
    if tensor.get("datatype") != INPUTS[name]:
        raise bad_request(
            f"input {name!r} has the datatype {INPUTS[name]}, got {shown(tensor.get('datatype'))}"
        )
    return name, tensor


def _raw_of(tensor: Mapping[str, Any], name: str, rest: memoryview) -> memoryview | None:
    """Return the bytes of the input that follow the JSON, or None when its data is in the JSON."""
    size = _parameters(tensor, f"input {name!r}").get("binary_data_size")
    if (size is None) == ("data" not in tensor):
        raise bad_request(f"input {name!r} needs either 'data' or 'binary_data_size'")
    if (size or 0) != len(rest):
        raise bad_request(
            f"input {name!r} has {size or 0} bytes of binary data by its own account, but "
            f"{len(rest)} follow the JSON"
        )
    return None if size is None else rest


def _shape(tensor: Mapping[str, Any]) -> list[int]:
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise bad_request(f"'shape' must be a list of whole numbers, got {shown(shape)}")
    return shape


def _read_encoded(tensor: Mapping[str, Any], raw: memoryview | None, limits: Limits) -> list[bytes]:
    shape = _shape(tensor)
    if not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)):
        raise bad_request(f"input 'image' has the shape [B] or [B, 1], got {shown(shape)}")
    check_count(shape[0], limits.max_images)
    if raw is not None:
        return _split_elements(raw, shape[0])
    return _from_strings(tensor["data"], shape[0])


def _split_elements(raw: memoryview, count: int) -> list[bytes]:
    elements: list[bytes] = []
    position = 0
    while position < len(raw):
        if len(elements) == count:
            raise bad_request(f"the BYTES tensor goes on after the {count} elements of its shape")
        if position + _SIZE.size > len(raw):
            raise bad_request("the BYTES tensor ends within the length of an element")
        (size,) = _SIZE.unpack_from(raw, position)
        position += _SIZE.size
        if position + size > len(raw):
            raise bad_request(
                f"the BYTES tensor ends within element {len(elements)}, which has {size:,} bytes"
            )
        elements.append(bytes(raw[position : position + size]))
        position += size
    if len(elements) < count:
        raise bad_request(f"the shape stands for {count} images, got {len(elements)}")
    return elements


def _from_strings(data: object, count: int) -> list[bytes]:
    if not isinstance(data, list):
        raise bad_request("'data' must be a list of base64 strings")
    if len(data) != count:
        raise bad_request(f"the shape stands for {count} images, got {len(data)}")
    images = []
    for index, element in enumerate(data):
        # [B, 1] may come nested, one list per image.
        text = element[0] if isinstance(element, list) and len(element) == 1 else element
        image = decode_base64(text)
        if isinstance(image, SightlineError):
            raise bad_request(f"image {index}: {image}", "bad_base64")
        images.append(image)
    return images


def _read_pixels(
    tensor: Mapping[str, Any], raw: memoryview | None, spec: PreprocessSpec, limits: Limits
) -> list[Image]:
    shape = _shape(tensor)
    if len(shape) != 4 or shape[1:] != [spec.height, spec.width, 3]:
        raise bad_request(
            f"input 'pixels' has the shape [B, {spec.height}, {spec.width}, 3], got {shown(shape)}"
        )
    check_count(shape[0], limits.max_images)
    values = np.frombuffer(raw, np.uint8) if raw is not None else _from_numbers(tensor["data"])
    expected = shape[0] * spec.height * spec.width * 3
    if values.size != expected:
        raise bad_request(f"the shape {shape} stands for {expected:,} values, got {values.size:,}")
    return list(values.reshape(shape))


def _from_numbers(data: object) -> npt.NDArray[np.uint8]:
    """Return the numbers of a flat or nested list, flat.

    By hand: NumPy would make one fixed-width array of whatever strings it finds, gigabytes out of a
    few kilobytes.
    """
    level = data
    for _ in range(MAX_DIMENSIONS - 1):
        if isinstance(level, list) and level and all(isinstance(item, list) for item in level):
            if len({len(item) for item in level}) > 1:
                raise bad_request("the lists in 'data' must be nested evenly")
            level = [value for item in level for value in item]
    try:
        if not isinstance(level, list) or not all(type(value) is int for value in level):
            raise ValueError
        return np.frombuffer(bytes(level), np.uint8)
    except ValueError as error:
        raise bad_request("'data' of UINT8 must be whole numbers from 0 to 255") from error


def _to_bytes(values: npt.NDArray[np.float32] | Sequence[str]) -> bytes:
    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values, "<f4").tobytes()
    encoded = [value.encode() for value in values]
    return b"".join(part for value in encoded for part in (_SIZE.pack(len(value)), value))
