"""What an infer call asks, whichever wire it came by: tensors to images, and the checks that both
wires share.

A wire (`infer_json`, `infer_messages`) takes a request apart and hands each input over as a
`Given`, whose data stays as it came until name, datatype and shape are known to be right: what a
shape promises is never allocated before.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from reprlib import repr as shown  # a client's value, however long or deep it is
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from models.preprocess import Image
from serve_app.config import Limits
from serve_app.errors import RequestError, bad_request
from serve_app.feeding import Prepare
from serve_app.limits import check_count
from serve_app.oip.signature import TensorSpec, View

DTYPES: Mapping[str, str] = {"UINT8": "|u1", "FP32": "<f4"}  # little-endian, as on the wire
_SIZE = struct.Struct("<I")  # the length before each element of a BYTES tensor

Numbers = npt.NDArray[Any]
Parameters = Mapping[str, Any]


class Data(Protocol):
    """The data of one input, not read yet."""

    def elements(self, count: int) -> Sequence[bytes | memoryview]:
        """Return the elements of a BYTES tensor. Raises `RequestError` if they are malformed or
        more than `count`.
        """
        ...

    def numbers(self, datatype: str, count: int) -> Numbers:
        """Return the numbers of a tensor, flat, of the datatype or wider. Raises `RequestError`
        if they are malformed, or more than `count`, of which nothing is made then.
        """
        ...


@dataclass(frozen=True)
class Given:
    """One input as it came; nothing of it has been checked."""

    name: object
    datatype: object
    shape: object
    data: Data


@dataclass(frozen=True)
class Wanted:
    """One output that the client asks for."""

    name: str
    is_binary: bool = True
    num_classes: int = 0  # > 0: the classification extension, `value:index:label` of the best ones


@dataclass(frozen=True)
class Images:
    """The images of one request: files still to be decoded, pixels (H, W, 3) that are ready, or
    what makes them ready and takes too long for the event loop.
    """

    encoded: Sequence[bytes | memoryview] = ()
    pixels: Sequence[Image] = ()
    unready: Sequence[Prepare] = ()


@dataclass(frozen=True)
class Asked:
    """One infer request."""

    id: str
    images: Images
    wanted: Sequence[Wanted]
    min_revision: int = 0


@dataclass(frozen=True)
class Tensor:
    """One output. `values` are float32 of the shape, or strings for BYTES."""

    name: str
    values: npt.NDArray[np.float32] | Sequence[str]
    shape: tuple[int, ...]

    @property
    def datatype(self) -> str:
        """Its name in the protocol."""
        return "FP32" if isinstance(self.values, np.ndarray) else "BYTES"

    def to_bytes(self) -> bytes:
        """Return its binary form."""
        if isinstance(self.values, np.ndarray):
            return np.ascontiguousarray(self.values, "<f4").tobytes()
        encoded = [value.encode() for value in self.values]
        return b"".join(part for value in encoded for part in (_SIZE.pack(len(value)), value))


@dataclass(frozen=True)
class Answered:
    """The answer to one infer request: its outputs in the order asked, and what else there is to
    say of them.
    """

    id: str
    tensors: Sequence[Tensor]
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class RawData:
    """Data in its binary form: the same on both wires."""

    raw: bytes | memoryview

    def elements(self, count: int) -> list[memoryview]:
        """Return the elements of a BYTES tensor where they lie: copied, all of a request would be
        in memory twice until it is answered.
        """
        raw, elements, position = memoryview(self.raw), list[memoryview](), 0
        while position < len(raw):
            if len(elements) == count:
                raise bad_request(f"the BYTES tensor goes on after its shape's {count} elements")
            if position + _SIZE.size > len(raw):
                raise bad_request("the BYTES tensor ends within the length of an element")
            (size,) = _SIZE.unpack_from(raw, position)
            position += _SIZE.size
            if position + size > len(raw):
                raise bad_request(
                    f"the BYTES tensor ends within element {len(elements)}, which has {size:,} "
                    "bytes"
                )
            elements.append(raw[position : position + size])
            position += size
        return elements

    def numbers(self, datatype: str, count: int) -> Numbers:
        """Read the numbers where they lie."""
        dtype = np.dtype(DTYPES[datatype])
        if len(self.raw) % dtype.itemsize:
            raise bad_request(
                f"{len(self.raw):,} bytes are no whole number of {datatype} values, which have "
                f"{dtype.itemsize} bytes each"
            )
        return np.frombuffer(self.raw, dtype)


def read_images(given: Given, view: View, limits: Limits) -> Images:
    """Return the images of an input, or raise `RequestError` (400, 413) saying what is wrong."""
    spec = _spec_of(given, view)
    count = _count(given, spec)
    check_count(count, limits.max_images)
    return READERS[spec.datatype](given.data, spec, count)


def read_wanted(
    listed: Sequence[tuple[object, Parameters]], view: View, *, is_binary: bool
) -> list[Wanted]:
    """Return the outputs that a request lists with their parameters, or all where it lists none.

    `is_binary` is how they are sent unless a parameter says otherwise.
    """
    if not listed:
        return [Wanted(name, is_binary) for name in view.outputs]
    check_num_outputs(len(listed), view)
    wanted = [_one_wanted(name, parameters, view, is_binary) for name, parameters in listed]
    if len({one.name for one in wanted}) < len(wanted):
        raise bad_request("'outputs' names an output twice")
    return wanted


def check_num_outputs(num_listed: int, view: View) -> None:
    """Raise `RequestError` for more outputs than there are."""
    if num_listed > len(view.outputs):
        raise bad_request(
            f"'outputs' lists {num_listed} outputs, there are {len(view.outputs)}: "
            f"{', '.join(view.outputs)}"
        )


def read_min_revision(parameters: Parameters) -> int:
    """Return the label revision that the answer has to be read with at least, 0 for any."""
    value = parameters.get("min_revision", 0)
    if type(value) is not int or value < 0:
        raise bad_request(f"'min_revision' must be a whole number from 0, got {shown(value)}")
    return value


def check_not_more(num_values: int, count: int) -> None:
    """Raise `RequestError` for more values than the shape stands for, before they are read."""
    if num_values > count:
        raise _other_number(num_values, count)


def check_parameters(value: Parameters, thing: str) -> Parameters:
    """Return parameters, or raise `RequestError` for those that ask for what there is not."""
    if "shared_memory_region" in value:
        raise bad_request(f"{thing} asks for shared memory, which this server does not offer")
    return value


def _one_wanted(name: object, parameters: Parameters, view: View, is_binary: bool) -> Wanted:
    if not isinstance(name, str) or name not in view.outputs:
        raise bad_request(f"unknown output {shown(name)}; expected {', '.join(view.outputs)}")
    check_parameters(parameters, f"output {name!r}")
    num_classes = parameters.get("classification", 0)
    if type(num_classes) is not int or num_classes < 0:
        raise bad_request(f"'classification' must be a whole number, got {shown(num_classes)}")
    if num_classes and name != "probabilities":
        raise bad_request(f"'classification' is for the output 'probabilities', not for {name!r}")
    return Wanted(name, parameters.get("binary_data", is_binary) is True, num_classes)


def _spec_of(given: Given, view: View) -> TensorSpec:
    if not isinstance(given.name, str) or given.name not in view.inputs:
        expected = " or ".join(view.inputs)
        raise bad_request(f"unknown input {shown(given.name)}; expected {expected}")
    spec = view.inputs[given.name]
    if given.datatype != spec.datatype:
        raise bad_request(
            f"input {spec.name!r} has the datatype {spec.datatype}, got {shown(given.datatype)}"
        )
    return spec


def _count(given: Given, spec: TensorSpec) -> int:
    """Return how many images the shape stands for."""
    shape = given.shape
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise bad_request(f"'shape' must be a list of whole numbers, got {shown(shape)}")
    fits = len(shape) > 0 and tuple(shape[1:]) == spec.dims
    if not fits and not (spec.datatype == "BYTES" and len(shape) == 1):
        expected = f"[{', '.join(('B', *map(str, spec.dims)))}]"
        forms = f"[B] or {expected}" if spec.datatype == "BYTES" else expected
        raise bad_request(f"input {spec.name!r} has the shape {forms}, got {shown(shape)}")
    return int(shape[0])


def _read_encoded(data: Data, spec: TensorSpec, count: int) -> Images:
    elements = data.elements(count)
    if len(elements) != count:
        raise bad_request(f"the shape stands for {count} images, got {len(elements)}")
    return Images(encoded=elements)


def _read_pixels(data: Data, spec: TensorSpec, count: int) -> Images:
    return Images(pixels=list(_shaped(data, spec, count)))


def _read_planes(data: Data, spec: TensorSpec, count: int) -> Images:
    planes = _shaped(data, spec, count)
    return Images(unready=[partial(_rounded, one, spec.name) for one in planes])


def _rounded(planes: Numbers, name: str) -> Image:
    """Return the pixels (H, W, 3) that values from 0 to 255 in planes (3, H, W) stand for."""
    if not np.all((planes >= 0) & (planes <= 255)):  # false for what is no number
        raise bad_request(
            f"input {name!r} has values from 0 to 255, not scaled in any way; some are "
            "smaller, larger or no numbers"
        )
    return np.ascontiguousarray(np.rint(planes).astype(np.uint8).transpose(1, 2, 0))


def _shaped(data: Data, spec: TensorSpec, count: int) -> Numbers:
    shape = (count, *spec.dims)
    expected = math.prod(shape)
    values = data.numbers(spec.datatype, expected)
    if values.size != expected:
        raise _other_number(values.size, expected)
    return values.reshape(shape)


def _other_number(given: int, expected: int) -> RequestError:
    return bad_request(f"the shape stands for {expected:,} values, got {given:,}")


READERS: Mapping[str, Callable[[Data, TensorSpec, int], Images]] = {
    "BYTES": _read_encoded,
    "UINT8": _read_pixels,
    "FP32": _read_planes,
}
