"""KServe's clients of the Open Inference Protocol: REST, and gRPC with typed contents."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import kserve  # type: ignore[import-not-found]
import numpy as np
import numpy.typing as npt
import pytest

ImageFile = Callable[[int], bytes]


def rest() -> Any:
    return kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2", retries=0))


def test_rest_reads_health_and_readiness(http_address: str) -> None:
    async def ask() -> None:
        async with rest() as client:
            base = f"http://{http_address}"
            assert await client.is_server_live(base)
            assert await client.is_server_ready(base)
            assert await client.is_model_ready(base, "elpv")
            assert not await client.is_model_ready(base, "elvp")

    asyncio.run(ask())


def test_rest_scores_pixels_as_json(http_address: str, pixels: npt.NDArray[np.uint8]) -> None:
    tensor = kserve.InferInput("pixels", list(pixels.shape), "UINT8", pixels.reshape(-1).tolist())
    request = kserve.InferRequest("elpv", [tensor], request_id="a")

    async def ask() -> Any:
        async with rest() as client:
            return await client.infer(f"http://{http_address}", request, model_name="elpv")

    answer = asyncio.run(ask())
    outputs = {output.name: output for output in answer.outputs}
    assert (answer.id, answer.model_name) == ("a", "elpv")
    probabilities = outputs["probabilities"].as_numpy()
    assert probabilities.shape == (2, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert set(outputs["label"].data) <= {"good", "defective"}


def test_rest_scores_pixels_as_binary(http_address: str, pixels: npt.NDArray[np.uint8]) -> None:
    tensor = kserve.InferInput("pixels", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=True)
    wanted = kserve.protocol.infer_type.RequestedOutput("embedding", {"binary_data": True})
    request = kserve.InferRequest("elpv", [tensor], request_outputs=[wanted])

    async def ask() -> Any:
        async with rest() as client:
            return await client.infer(f"http://{http_address}", request, model_name="elpv")

    (output,) = asyncio.run(ask()).outputs
    vectors = output.as_numpy()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_rest_scores_an_image_file(http_address: str, image_file: ImageFile) -> None:
    text = base64.b64encode(image_file(1)).decode()
    request = kserve.InferRequest("elpv", [kserve.InferInput("image", [1], "BYTES", [text])])

    async def ask() -> Any:
        async with rest() as client:
            return await client.infer(f"http://{http_address}", request, model_name="elpv")

    assert {output.name for output in asyncio.run(ask()).outputs} == {
        *("probabilities", "embedding", "label")
    }


def test_rest_is_told_what_is_wrong(http_address: str) -> None:
    request = kserve.InferRequest("elpv", [kserve.InferInput("image", [1], "BYTES", ["%%"])])

    async def ask() -> Any:
        async with rest() as client:
            return await client.infer(f"http://{http_address}", request, model_name="elpv")

    with pytest.raises(Exception, match="not valid base64"):
        asyncio.run(ask())


@pytest.mark.lone
def test_grpc_scores_typed_contents(grpc_address: str, pixels: npt.NDArray[np.uint8]) -> None:
    tensor = kserve.InferInput("pixels", list(pixels.shape), "UINT8", pixels.reshape(-1).tolist())
    request = kserve.InferRequest("elpv", [tensor], request_id="a")

    async def ask() -> Any:
        async with kserve.InferenceGRPCClient(grpc_address) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("elpv")
            return await client.infer(request)

    answer = asyncio.run(ask())
    outputs = {output.name: output.as_numpy() for output in answer.outputs}
    assert outputs["probabilities"].shape == (2, 2)
    np.testing.assert_allclose(np.linalg.norm(outputs["embedding"], axis=1), 1, atol=1e-5)
