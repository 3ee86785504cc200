"""gRPC through real Ray Serve and HAProxy, with a plain channel and our own messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc  # type: ignore[import-untyped]
import httpx
import numpy as np
import pytest

from serve_app.oip.messages import message
from tests.serve_app.conftest import Server, encode
from tests.serve_app.grpc_client import GrpcClient, image_request, infer_request, outputs_of

pytestmark = [pytest.mark.e2e, pytest.mark.ray]


@pytest.fixture
def elpv(server: Server) -> Iterator[GrpcClient]:
    """A client that chooses its application, since the catalog is one as well."""
    client = GrpcClient(server.grpc_address, {"application": "elpv"})
    yield client
    client.close()


def test_the_model_tells_what_it_is(elpv: GrpcClient, server: Server) -> None:
    assert elpv.call("ServerLive").live
    assert elpv.call("ServerReady").ready
    assert elpv.call("ModelReady", name="elpv", version="1").ready
    assert not elpv.call("ModelReady", name="elpv", version="2").ready
    metadata = elpv.call("ModelMetadata", name="elpv")
    told = httpx.get(f"{server.url}/v2/models/elpv").json()
    assert (metadata.name, metadata.versions) == (told["name"], told["versions"])
    assert [tensor.name for tensor in metadata.inputs] == ["image", "pixels", "tensor"]
    assert elpv.call("ModelConfig", name="elpv").config.max_batch_size == 64
    assert elpv.call("RepositoryIndex").models[0].state == "READY"


def test_images_are_scored_as_over_http(elpv: GrpcClient, server: Server) -> None:
    images = [encode(1), encode(2)]
    outputs = outputs_of(elpv.call("ModelInfer", image_request(*images, model="elpv", id="a")))
    for row, image in enumerate(images):
        expected = httpx.post(f"{server.url}/v2/models/elpv/classify", content=image).json()
        assert outputs["label"][row] == expected["label"]
        assert outputs["probabilities"][row].max() == pytest.approx(expected["confidence"])


def test_a_request_of_many_megabytes_is_no_more_trouble_than_over_http(elpv: GrpcClient) -> None:
    # Between deployments Serve's own limit is 4 MiB; here there is none such on the way.
    image = encode(3, size=(64, 64), kind="BMP") + bytes(12 << 20)
    tensor = {"name": "image", "datatype": "BYTES", "shape": [2]}
    request = infer_request(
        {**tensor, "contents": {"bytes_contents": [image, image]}}, model_name="elpv"
    )
    assert outputs_of(elpv.call("ModelInfer", request))["embedding"].shape == (2, 8)


def test_a_message_larger_than_any_body_may_be_is_refused(elpv: GrpcClient) -> None:
    request = image_request(bytes(66 << 20), model="elpv")
    elpv.refused("RESOURCE_EXHAUSTED", "ModelInfer", request)
    assert elpv.call("ServerLive").live


@pytest.mark.parametrize(
    ("request_", "code", "told"),
    [
        (image_request(b"no image", model="elpv"), "INVALID_ARGUMENT", "image_type: not an image"),
        (image_request(b"x", model="elvp"), "NOT_FOUND", "unknown_model: no model 'elvp' here"),
        (
            image_request(b"x", model="elpv", model_version="2"),
            "NOT_FOUND",
            "unknown_version: model 'elpv' answers here in version 1",
        ),
        (message("ModelInferRequest")(model_name="elpv"), "INVALID_ARGUMENT", "one input"),
    ],
)
def test_a_refusal_arrives_with_its_code_and_sentence(
    elpv: GrpcClient, request_: Any, code: str, told: str
) -> None:
    assert told in elpv.refused(code, "ModelInfer", request_)


def test_extensions_that_are_not_offered_and_changes_are_refused(elpv: GrpcClient) -> None:
    assert "shared memory" in elpv.refused("UNIMPLEMENTED", "SystemSharedMemoryStatus")
    said = elpv.refused("PERMISSION_DENIED", "RepositoryModelUnload", model_name="elpv")
    assert said.startswith("admin_closed: ")


def test_a_stream_answers_in_order_and_goes_on_after_an_error(elpv: GrpcClient) -> None:
    requests = [
        image_request(b"no image" if number == 2 else encode(number), model="elpv", id=str(number))
        for number in range(6)
    ]
    answers = list(elpv.stream(requests))
    assert [answer.infer_response.id for answer in answers] == [str(n) for n in range(6)]
    assert [bool(answer.error_message) for answer in answers] == [n == 2 for n in range(6)]


def test_a_view_takes_one_input_and_gives_one_output(elpv: GrpcClient) -> None:
    metadata = elpv.call("ModelMetadata", name="elpv/views/tensor")
    assert [tensor.name for tensor in metadata.inputs] == ["tensor"]
    assert [tensor.name for tensor in metadata.outputs] == ["probabilities"]
    planes = np.full((1, 3, 64, 64), 7, "<f4")
    tensor = {"name": "tensor", "datatype": "FP32", "shape": planes.shape}
    request = infer_request(tensor, planes.tobytes(), model_name="elpv/views/tensor")
    assert list(outputs_of(elpv.call("ModelInfer", request))) == ["probabilities"]


def test_statistics_count_what_came_by_either_wire(elpv: GrpcClient, server: Server) -> None:
    def success() -> int:
        stats = elpv.call("ModelStatistics", name="elpv").model_stats[0]
        return int(stats.inference_stats.success.count)

    before = success()
    elpv.call("ModelInfer", image_request(encode(), model="elpv"))
    httpx.post(f"{server.url}/v2/models/elpv/classify", content=encode())
    assert success() == before + 2


def test_without_metadata_there_is_no_telling_which_application_is_meant(server: Server) -> None:
    client = GrpcClient(server.grpc_address)
    assert "metadata" in client.refused("NOT_FOUND", "ServerLive")
    client.close()


def test_the_catalog_answers_for_the_whole_server(server: Server) -> None:
    client = GrpcClient(server.grpc_address, {"application": "catalog"})
    assert client.call("ServerLive").live
    assert client.call("ServerReady").ready
    assert client.call("ServerMetadata").name == "sightline"
    index = {(entry.name, entry.state) for entry in client.call("RepositoryIndex").models}
    assert ("elpv", "READY") in index
    for name in ("ModelMetadata", "ModelReady", "ModelInfer", "RepositoryModelLoad"):
        assert "serves no model" in client.refused("UNIMPLEMENTED", name)
    with pytest.raises(grpc.RpcError, match="serves no model"):
        list(client.stream([image_request(b"x")]))
    client.close()
