"""Infer calls over HTTP: JSON and binary tensors to and from the values in `tensors`.

A body is JSON, or JSON followed by the bytes of its tensors in order; then the header
`Inference-Header-Content-Length` says how long the JSON is. Length 0 means no JSON at all: the
whole body is the one input, of one image. Clients disagree on Content-Type, so nothing here looks
at it.

In JSON an encoded image is a base64 string, because JSON has no bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as shown
from typing import Any

import numpy as np
import orjson

from models.errors import SightlineError
from serve_app.config import Limits
from serve_app.errors import bad_request
from serve_app.limits import parse_whole
from serve_app.oip.signature import View
from serve_app.oip.tensors import (
    Answered,
    Asked,
    Data,
    Given,
    Images,
    Numbers,
    RawData,
    Wanted,
    check_not_more,
    check_num_outputs,
    check_parameters,
    read_images,
    read_min_revision,
    read_wanted,
)
from serve_app.replies import BINARY, Reply
from serve_app.uploads import MAX_JSON_VALUES, decode_base64, parse_json

LENGTH_HEADER = "Inference-Header-Content-Length"
MAX_DIMENSIONS = 4  # [B, H, W, 3]
# What JSON takes while it is taken apart, the body included: its text four times, and for each of
# these so many bytes beside it. `tests.serve_app.json_memory` measures both.
COPIES = 4
WEIGHTS: Mapping[bytes, int] = {b",": 52, b'"': 14, b":": 72, b"[": 88, b"{": 88}
CHUNK = 1 << 20  # of a count, during which nothing else runs
WIDEST = 4  # bytes of a number that was read, for each of its text: "1," becomes a float64


def parse_infer(body: bytes, header_length: str | None, view: View, limits: Limits) -> Asked:
    """Read an infer request, or raise `RequestError` (400, 413) saying what is wrong with it."""
    if header_length is not None and header_length.strip() == "0":
        return _parse_bare(body, view, limits)
    length = json_length(header_length, len(body))
    request = parse_json(memoryview(body)[:length], _max_values(view, limits))
    if not isinstance(request, dict):
        raise bad_request(f"expected a JSON object, got {type(request).__name__}", "bad_json")
    parameters = _parameters(request, "the request")
    is_binary = parameters.get("binary_data_output") is True
    wanted = read_wanted(_listed(request.get("outputs"), view), view, is_binary=is_binary)
    images = read_images(_given(request, view, memoryview(body)[length:]), view, limits)
    return Asked(_id(request), images, wanted, read_min_revision(parameters))


def json_weight(body: bytes, length: int) -> int:
    """Return what a body whose JSON has that length takes in memory while it is read."""
    weight = len(body) + (COPIES - 1) * length
    for start in range(0, length, CHUNK):
        end = min(start + CHUNK, length)
        weight += sum(each * body.count(sign, start, end) for sign, each in WEIGHTS.items())
    return weight


def num_bytes_read(body: bytes, asked: Asked) -> int:
    """Return what is left of such a body when it was read."""
    return len(body) * (WIDEST if asked.images.unready else 1)


def infer_reply(name: str, version: int, wanted: Sequence[Wanted], answered: Answered) -> Reply:
    """Serialise outputs, each as JSON or as bytes after the JSON."""
    listed, buffers = [], []
    for tensor, form in zip(answered.tensors, wanted, strict=True):
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
        }
        if form.is_binary:
            buffer = tensor.to_bytes()
            entry["parameters"] = {"binary_data_size": len(buffer)}
            buffers.append(buffer)
        else:
            values = tensor.values
            entry["data"] = values.reshape(-1) if isinstance(values, np.ndarray) else values
        listed.append(entry)
    answer: dict[str, Any] = {"model_name": name, "model_version": str(version), "outputs": listed}
    if answered.id:
        answer["id"] = answered.id
    if answered.parameters:
        answer["parameters"] = answered.parameters
    head = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    if not buffers:
        return Reply(head)
    headers = {LENGTH_HEADER: str(len(head))}
    return Reply(b"".join([head, *buffers]), content_type=BINARY, headers=headers)


@dataclass(frozen=True)
class JsonData:
    """Data that stands in the JSON."""

    value: object

    def elements(self, count: int) -> list[bytes]:
        """Decode base64 strings."""
        if not isinstance(self.value, list):
            raise bad_request("'data' must be a list of base64 strings")
        if len(self.value) != count:
            raise bad_request(f"the shape stands for {count} images, got {len(self.value)}")
        images = []
        for index, element in enumerate(self.value):
            # [B, 1] may come nested, one list per image.
            text = element[0] if isinstance(element, list) and len(element) == 1 else element
            image = decode_base64(text)
            if isinstance(image, SightlineError):
                raise bad_request(f"image {index}: {image}", "bad_base64")
            images.append(image)
        return images

    def numbers(self, datatype: str, count: int) -> Numbers:
        """Flatten a flat or nested list.

        By hand: NumPy would make one fixed-width array of whatever strings it finds, gigabytes out
        of a few kilobytes.
        """
        level = self.value
        check_not_more(_num_nested(level), count)
        for _ in range(MAX_DIMENSIONS - 1):
            if isinstance(level, list) and level and all(isinstance(item, list) for item in level):
                if len({len(item) for item in level}) > 1:
                    raise bad_request("the lists in 'data' must be nested evenly")
                level = [value for item in level for value in item]
        types = {int} if datatype == "UINT8" else {int, float}
        try:
            if not isinstance(level, list) or not {type(value) for value in level} <= types:
                raise ValueError
            if datatype == "UINT8":
                return np.frombuffer(bytes(level), np.uint8)
            return np.array(
                level, np.float64
            )  # wide, so that nothing overflows before it is checked
        except ValueError as error:
            kind = "whole numbers" if datatype == "UINT8" else "numbers"
            raise bad_request(f"'data' of {datatype} must be {kind} from 0 to 255") from error


def _num_nested(level: object) -> int:
    """Return how many values there are in lists that are nested evenly, by the first of each."""
    count = 1
    for _ in range(MAX_DIMENSIONS):
        if not isinstance(level, list):
            break
        count *= len(level)
        level = level[0] if level else None
    return count


def _parse_bare(body: bytes, view: View, limits: Limits) -> Asked:
    """A body without any JSON is one image: a file as it is, or the numbers of a view's input."""
    wanted = [Wanted(name) for name in view.outputs]
    spec = next(iter(view.inputs.values()))
    if spec.datatype == "BYTES":
        return Asked("", Images(encoded=[body]), wanted)
    given = Given(spec.name, spec.datatype, [1, *spec.dims], RawData(body))
    return Asked("", read_images(given, view, limits), wanted)


def _max_values(view: View, limits: Limits) -> int:
    """Ready pixels as nested lists are the most that a body can hold: the lists of one value each
    come on top of the values.
    """
    values = max(math.prod(spec.dims) for spec in view.inputs.values())
    return limits.max_images * values * 4 // 3 + MAX_JSON_VALUES


def json_length(header: str | None, body_length: int) -> int:
    """Return how much of a body is JSON, or raise `RequestError` (400)."""
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
    return check_parameters(value, thing)


def _listed(listed: object, view: View) -> list[tuple[object, Mapping[str, Any]]]:
    if listed is None:
        return []
    if not isinstance(listed, list):
        raise bad_request("'outputs' must be a list")
    check_num_outputs(len(listed), view)
    found = []
    for item in listed:
        if not isinstance(item, dict):
            raise bad_request(f"an output must be an object with a name, got {shown(item)}")
        found.append((item.get("name"), _parameters(item, f"output {shown(item.get('name'))}")))
    return found


def _given(request: Mapping[str, Any], view: View, rest: memoryview) -> Given:
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise bad_request(f"'inputs' must be a list with one input, {' or '.join(view.inputs)}")
    tensor: Mapping[str, Any] = inputs[0]
    return Given(
        tensor.get("name"), tensor.get("datatype"), tensor.get("shape"), _data(tensor, rest)
    )


def _data(tensor: Mapping[str, Any], rest: memoryview) -> Data:
    """Return the bytes of the input that follow the JSON, or its data in the JSON."""
    name = shown(tensor.get("name"))
    size = _parameters(tensor, f"input {name}").get("binary_data_size")
    if (size is None) == ("data" not in tensor):
        raise bad_request(f"input {name} needs either 'data' or 'binary_data_size'")
    if (size or 0) != len(rest):
        raise bad_request(
            f"input {name} has {shown(size or 0)} bytes of binary data by its own account, but "
            f"{len(rest)} follow the JSON"
        )
    return JsonData(tensor.get("data")) if size is None else RawData(rest)
