"""What Triton's example programs do: `image_client.py`, which takes a classifier with exactly one
image tensor and one vector of floats, and `ensemble_image_client.py`, which sends image files.

The programs are in no package, so their demands and steps are written down here: over HTTP they are
given a view's address with `-u`, over gRPC a view's name with `-m`.
"""

from __future__ import annotations

import io
import queue
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc
import tritonclient.grpc.model_config_pb2 as config_pb2
import tritonclient.http
from PIL import Image
from tritonclient.utils import triton_to_np_dtype

ImageFile = Callable[[int], bytes]
FORMATS = dict(config_pb2.ModelInput.Format.items())


@dataclass(frozen=True)
class Expected:
    """What the program learns of the model before it reads an image."""

    max_batch: int
    input: str
    output: str
    channels: int
    height: int
    width: int
    format: int
    datatype: str


def learn(metadata: Any, config: Any) -> Expected:
    """Check a model as the program does, and return what it needs; everything as JSON values."""
    (given,), (out,), (configured,) = metadata["inputs"], metadata["outputs"], config["input"]
    assert out["datatype"] == "FP32"
    assert config["max_batch_size"] > 0  # so the first dimension is the batch
    assert len([n for n in map(int, out["shape"][1:]) if n > 1]) <= 1, "a vector"
    shape = [int(n) for n in given["shape"]]
    assert len(shape) == 4
    form = FORMATS[configured["format"]]
    assert form in (FORMATS["FORMAT_NCHW"], FORMATS["FORMAT_NHWC"])
    is_planes = form == FORMATS["FORMAT_NCHW"]
    channels, height, width = shape[1:] if is_planes else (shape[3], shape[1], shape[2])
    return Expected(
        int(config["max_batch_size"]),
        given["name"],
        out["name"],
        channels,
        height,
        width,
        form,
        given["datatype"],
    )


def prepare(file: bytes, expected: Expected) -> npt.NDArray[Any]:
    """Make a tensor of an image as the program does with `-s NONE`."""
    image = Image.open(io.BytesIO(file)).convert("L" if expected.channels == 1 else "RGB")
    resized = np.array(image.resize((expected.width, expected.height), Image.Resampling.BILINEAR))
    typed = resized.astype(triton_to_np_dtype(expected.datatype))
    return typed.transpose(2, 0, 1) if expected.format == FORMATS["FORMAT_NCHW"] else typed


def read(output: npt.NDArray[Any], batch: int) -> list[list[tuple[float, int, str]]]:
    """Read an answer as the program does: rows of bytes, cut at colons."""
    assert len(output) == batch
    rows = []
    for row in output:
        parts = ["".join(map(chr, line)).split(":") for line in row]
        rows.append([(float(value), int(index), label) for value, index, label in parts])
    return rows


def check(rows: list[list[tuple[float, int, str]]], top: int) -> None:
    for row in rows:
        assert len(row) == top
        assert [value for value, _, _ in row] == sorted((v for v, _, _ in row), reverse=True)
        assert all(["good", "defective"][index] == label for _, index, label in row)


def told_over_http(client: Any, model: str) -> Expected:
    return learn(client.get_model_metadata(model), client.get_model_config(model))


def told_over_grpc(client: Any, model: str, version: str = "") -> Expected:
    metadata = client.get_model_metadata(model, version, as_json=True)
    config = client.get_model_config(model, version, as_json=True)["config"]
    return learn(metadata, config)


@pytest.mark.parametrize("view", ["pixels", "tensor"])
@pytest.mark.parametrize("version", ["", "1"])
def test_image_client_over_http(
    http_address: str, image_file: ImageFile, view: str, version: str
) -> None:
    api = tritonclient.http
    with api.InferenceServerClient(f"{http_address}/v2/models/elpv/views/{view}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("elpv", version)
        expected = told_over_http(client, "elpv")
        batch = np.stack([prepare(image_file(seed), expected) for seed in (1, 2, 3)])
        tensor = api.InferInput(expected.input, batch.shape, expected.datatype)
        tensor.set_data_from_numpy(batch)
        outputs = [api.InferRequestedOutput(expected.output, class_count=2)]
        result = client.infer("elpv", [tensor], model_version=version, outputs=outputs)
        check(read(result.as_numpy(expected.output), 3), top=2)
        waiting = client.async_infer("elpv", [tensor], outputs=outputs)
        check(read(waiting.get_result().as_numpy(expected.output), 3), top=2)


@pytest.mark.lone
@pytest.mark.parametrize("view", ["pixels", "tensor"])
@pytest.mark.parametrize("is_streaming", [False, True])
def test_image_client_over_grpc(
    grpc_address: str, image_file: ImageFile, view: str, is_streaming: bool
) -> None:
    api = tritonclient.grpc
    model = f"elpv/views/{view}"
    with api.InferenceServerClient(grpc_address) as client:
        expected = told_over_grpc(client, model)
        batch = np.stack([prepare(image_file(seed), expected) for seed in (1, 2, 3)])
        tensor = api.InferInput(expected.input, batch.shape, expected.datatype)
        tensor.set_data_from_numpy(batch)
        outputs = [api.InferRequestedOutput(expected.output, class_count=1)]
        if is_streaming:
            done: queue.Queue[Any] = queue.Queue()
            client.start_stream(lambda result, error: done.put((result, error)))
            client.async_stream_infer(model, [tensor], request_id="1", outputs=outputs)
            result, error = done.get(timeout=30)
            client.stop_stream()
            assert error is None
        else:
            result = client.infer(model, [tensor], request_id="1", outputs=outputs)
        assert result.get_response().id == "1"
        check(read(result.as_numpy(expected.output), 3), top=1)


def test_the_two_views_of_pixels_and_the_model_agree(
    http_address: str, image_file: ImageFile
) -> None:
    api = tritonclient.http
    found = []
    for view in ("pixels", "tensor"):
        with api.InferenceServerClient(f"{http_address}/v2/models/elpv/views/{view}") as client:
            expected = told_over_http(client, "elpv")
            batch = prepare(image_file(5), expected)[None]
            tensor = api.InferInput(expected.input, batch.shape, expected.datatype)
            tensor.set_data_from_numpy(batch)
            found.append(client.infer("elpv", [tensor]).as_numpy(expected.output))
    np.testing.assert_array_equal(found[0], found[1])


def files(image_file: ImageFile) -> npt.NDArray[Any]:
    """Stack image files as `ensemble_image_client.py` does: [B, 1]."""
    return np.stack([np.array([image_file(seed)], dtype=bytes) for seed in (1, 2)])


def test_ensemble_image_client_over_http(http_address: str, image_file: ImageFile) -> None:
    api = tritonclient.http
    with api.InferenceServerClient(f"{http_address}/v2/models/elpv/views/image") as client:
        metadata, config = client.get_model_metadata("elpv"), client.get_model_config("elpv")
        ((given,), (_,)) = metadata["inputs"], config["input"]
        assert config["max_batch_size"] >= 2
        batch = files(image_file)
        tensor = api.InferInput(given["name"], batch.shape, "BYTES")
        tensor.set_data_from_numpy(batch, binary_data=True)
        names = [output["name"] for output in metadata["outputs"]]
        outputs = [api.InferRequestedOutput(n, binary_data=True, class_count=2) for n in names]
        result = client.infer("elpv", [tensor], outputs=outputs)
        for name in names:
            check(read(result.as_numpy(name), 2), top=2)


@pytest.mark.lone
def test_ensemble_image_client_over_grpc(grpc_address: str, image_file: ImageFile) -> None:
    api = tritonclient.grpc
    with api.InferenceServerClient(grpc_address) as client:
        metadata = client.get_model_metadata("elpv/views/image")
        config = client.get_model_config("elpv/views/image").config
        ((given,), (_,)) = metadata.inputs, config.input
        batch = files(image_file)
        tensor = api.InferInput(given.name, batch.shape, "BYTES")
        tensor.set_data_from_numpy(batch)
        names = [output.name for output in metadata.outputs]
        outputs = [api.InferRequestedOutput(name, class_count=2) for name in names]
        result = client.infer("elpv/views/image", [tensor], outputs=outputs)
        for name in names:
            check(read(result.as_numpy(name), 2), top=2)
