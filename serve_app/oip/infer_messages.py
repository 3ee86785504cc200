"""Infer calls over gRPC: messages to and from the values in `tensors`.

The data of an input stands in `raw_input_contents`, in the binary form, or typed in the input
itself. Outputs always leave in `raw_output_contents`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve_app.config import Limits
from serve_app.errors import RequestError, bad_request
from serve_app.oip.messages import message
from serve_app.oip.signature import View
from serve_app.oip.tensors import (
    Answered,
    Asked,
    Data,
    Given,
    Numbers,
    RawData,
    check_not_more,
    check_num_outputs,
    check_parameters,
    read_images,
    read_min_revision,
    read_wanted,
)
from serve_app.shown import shown

MAX_PARAMETERS = 100  # of a request, an input or an output
MAX_DIMENSIONS = 8
# A message holds its data beside the bytes that are taken out of it. A number of `uint_contents`,
# of one byte or two, takes 10.7 in a message that was read, and 5 more as an array (measured with
# 20 million, protobuf 7.36).
COPIES, BYTES_PER_UINT = 2, 12


def num_bytes_held(request: Any, num_bytes: int) -> int:
    """Return what a ModelInferRequest of so many bytes takes in memory until it is answered."""
    num_uints = sum(
        len(tensor.contents.uint_contents)
        for tensor in request.inputs
        if tensor.HasField("contents")
    )
    return COPIES * num_bytes + BYTES_PER_UINT * num_uints


def check_numbers(request: Any, most: int) -> None:
    """Raise `RequestError` for more typed numbers than any request has."""
    for tensor in request.inputs:
        if tensor.HasField("contents"):
            contents = tensor.contents
            num_values = len(contents.uint_contents) + len(contents.fp32_contents)
            if num_values > most:
                raise bad_request(
                    f"the message has {num_values:,} numbers in its contents; the most images that "
                    f"a request may hold have {most:,}",
                    "bad_message",
                )


def parse_request(request: Any, view: View, limits: Limits) -> Asked:
    """Read a ModelInferRequest, or raise `RequestError` (400, 413)."""
    check_num_outputs(len(request.outputs), view)
    listed = [
        (output.name, _plain(output.parameters, f"output {shown(output.name)}"))
        for output in request.outputs
    ]
    parameters = _plain(request.parameters, "the request")
    wanted = read_wanted(listed, view, is_binary=True)
    images = read_images(_given(request, view, limits), view, limits)
    return Asked(request.id, images, wanted, read_min_revision(parameters))


def infer_response(name: str, version: int, answered: Answered) -> Any:
    """Return the ModelInferResponse for an answer."""
    response = message("ModelInferResponse")(
        model_name=name, model_version=str(version), id=answered.id
    )
    for key, value in answered.parameters.items():
        response.parameters[key].int64_param = value
    for tensor in answered.tensors:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        response.raw_output_contents.append(tensor.to_bytes())
    return response


@dataclass(frozen=True)
class TypedData:
    """Data that stands in an InferTensorContents."""

    contents: Any

    def elements(self, count: int) -> list[bytes]:
        """Return the images, which stand there as they are."""
        # Counted before it is copied; `read_images` says what is wrong with the count.
        return list(self.contents.bytes_contents[: count + 1])

    def numbers(self, datatype: str, count: int) -> Numbers:
        """Return the numbers."""
        is_float = datatype == "FP32"
        values = self.contents.fp32_contents if is_float else self.contents.uint_contents
        check_not_more(len(values), count)
        numbers = np.fromiter(values, np.float32 if is_float else np.uint32, count=len(values))
        if is_float:
            return numbers
        if numbers.size and numbers.max() > 255:
            raise bad_request(f"values of {datatype} must be whole numbers from 0 to 255")
        return numbers.astype(np.uint8)


def _given(request: Any, view: View, limits: Limits) -> Given:
    if len(request.inputs) != 1:
        expected = " or ".join(view.inputs)
        raise bad_request(f"expected one input, {expected}; got {len(request.inputs)}")
    tensor = request.inputs[0]
    _plain(tensor.parameters, f"input {shown(tensor.name)}")
    if len(tensor.shape) > MAX_DIMENSIONS:
        raise bad_request(f"input {shown(tensor.name)} has {len(tensor.shape)} dimensions")
    return Given(tensor.name, tensor.datatype, list(tensor.shape), _data(request, tensor, limits))


def _data(request: Any, tensor: Any, limits: Limits) -> Data:
    raw: Sequence[bytes] = request.raw_input_contents
    is_typed = tensor.HasField("contents")
    if len(raw) > 1 or (len(raw) == 1) == is_typed:
        raise bad_request(
            f"input {shown(tensor.name)} needs its data either in raw_input_contents, with one "
            f"entry for it, or in its contents; got {len(raw)} raw entries and "
            f"{'typed' if is_typed else 'no typed'} contents"
        )
    if is_typed:
        data: Data = TypedData(tensor.contents)
        num_bytes = sum(map(len, tensor.contents.bytes_contents))
    else:
        data = RawData(raw[0])
        num_bytes = len(data.raw)
    if num_bytes > limits.max_body_bytes:
        raise RequestError(
            413,
            "body_too_large",
            f"the request has {num_bytes:,} bytes of data; the limit is "
            f"{limits.max_body_bytes:,} per request",
        )
    return data


def _plain(parameters: Any, thing: str) -> Mapping[str, Any]:
    """Return parameters as plain values; one without a value is None."""
    if len(parameters) > MAX_PARAMETERS:
        raise bad_request(f"{thing} has {len(parameters)} parameters")
    plain = {}
    for name, value in parameters.items():
        choice = value.WhichOneof("choice")
        plain[name] = getattr(value, choice) if choice else None
    return check_parameters(plain, thing)
