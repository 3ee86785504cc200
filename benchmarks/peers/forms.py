"""How one image travels to each kind of server, and how its answer is read. Pure functions."""

from __future__ import annotations

import base64
import json
import mimetypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.wire import Request

Probabilities = list[float]
Form = Callable[[str, Path], Request]  # path of the call, image file
Reader = Callable[[bytes], Probabilities]

BOUNDARY = "sightline-benchmark"
JSON = (("Content-Type", "application/json"),)


def raw(path: str, image: Path) -> Request:
    """The file is the body."""
    return Request(path, image.read_bytes(), (("Content-Type", media_type(image)),))


def triton_raw(path: str, image: Path) -> Request:
    """Triton's raw binary request: the body is the only element of the only input."""
    headers = (
        ("Content-Type", "application/octet-stream"),
        ("Inference-Header-Content-Length", "0"),
    )
    return Request(path, image.read_bytes(), headers)


def multipart(field: str) -> Form:
    """Return the form of a file upload under that name."""

    def build(path: str, image: Path) -> Request:
        head = (
            f"--{BOUNDARY}\r\n"
            f'Content-Disposition: form-data; name="{field}"; filename="{image.name}"\r\n'
            f"Content-Type: {media_type(image)}\r\n\r\n"
        )
        body = head.encode() + image.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode()
        return Request(path, body, (("Content-Type", f"multipart/form-data; boundary={BOUNDARY}"),))

    return build


def base64_json(field: str) -> Form:
    """Return the form of a JSON object with the image in one field."""

    def build(path: str, image: Path) -> Request:
        return Request(path, json.dumps({field: _base64(image)}).encode(), JSON)

    return build


def v2_base64(path: str, image: Path) -> Request:
    """Open Inference Protocol in JSON, the image in base64 as MLServer's codec reads it."""
    tensor = {
        "name": "image",
        "shape": [1, 1],
        "datatype": "BYTES",
        "parameters": {"content_type": "base64"},
        "data": [_base64(image)],
    }
    return Request(path, json.dumps({"inputs": [tensor]}).encode(), JSON)


def read_json(body: bytes) -> Probabilities:
    """Read an answer of `benchmarks.peers.scoring`, alone or the only one of a list."""
    answer = json.loads(body)
    return _as_floats((answer[0] if isinstance(answer, list) else answer)["probabilities"])


def read_v2(body: bytes) -> Probabilities:
    """Read the output `probabilities` of a JSON answer."""
    outputs = {each["name"]: each["data"] for each in json.loads(body)["outputs"]}
    return _as_floats(outputs["probabilities"])


def read_v2_binary(body: bytes) -> Probabilities:
    """Read an answer of one output: JSON, then its float32 values."""
    head, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    (output,) = head["outputs"]
    assert output["parameters"]["binary_data_size"] == len(body) - end
    return _as_floats(np.frombuffer(body[end:], dtype="<f4"))


def _as_floats(values: Any) -> Probabilities:
    return [float(value) for value in values]


def _base64(image: Path) -> str:
    return base64.b64encode(image.read_bytes()).decode()


def media_type(image: Path) -> str:
    """Return what the name of an image file says that it is."""
    return mimetypes.guess_type(image.name)[0] or "application/octet-stream"
