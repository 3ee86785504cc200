"""Triton's own Python clients, over HTTP and gRPC, used as their documentation shows."""

from __future__ import annotations

import base64
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

SIDE = 64  # of the tiny models' input
ImageFile = Callable[[int], bytes]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Triton:
    """One of the two clients of Triton, and what chooses an application with it."""

    wire: str
    api: Any
    client: Any

    def chosen(self, model: str) -> dict[str, Any]:
        """Return the argument that every call of that model needs."""
        return {"headers": {"application": model}} if self.wire == "grpc" else {}

    def tell(self, call: str, model: str, *arguments: str) -> Any:
        """Call what answers with a message, and return it as JSON values."""
        as_json = {"as_json": True} if self.wire == "grpc" else {}
        return getattr(self.client, call)(*arguments, **self.chosen(model), **as_json)

    def given(self, name: str, datatype: str, values: npt.NDArray[Any], **form: bool) -> Any:
        """Return an input. `form` is `binary_data`, which only HTTP has."""
        tensor = self.api.InferInput(name, list(values.shape), datatype)
        tensor.set_data_from_numpy(values, **(form if self.wire == "http" else {}))
        return tensor

    def infer(self, model: str, tensor: Any, **arguments: Any) -> Any:
        """Score one input."""
        return self.client.infer(model, [tensor], **self.chosen(model), **arguments)


@pytest.fixture(params=["http", "grpc"])
def triton(
    request: pytest.FixtureRequest, http_address: str, grpc_address: str
) -> Iterator[Triton]:
    """Triton's client of either wire."""
    wire = request.param
    api = {"http": tritonclient.http, "grpc": tritonclient.grpc}[wire]
    address = {"http": http_address, "grpc": grpc_address}[wire]
    client = api.InferenceServerClient(address)
    yield Triton(wire, api, client)
    client.close()


# --- what the server and its models say of themselves ---------------------------------------------


def test_the_server_is_live_and_ready(triton: Triton) -> None:
    chosen = triton.chosen("elpv")
    assert triton.client.is_server_live(**chosen)
    assert triton.client.is_server_ready(**chosen)
    assert triton.client.is_model_ready("elpv", **chosen)
    assert triton.client.is_model_ready("elpv", "1", **chosen)
    assert not triton.client.is_model_ready("elpv", "2", **chosen)
    assert not triton.client.is_model_ready("elvp", **chosen)


def test_metadata_names_inputs_and_outputs(triton: Triton) -> None:
    server = triton.tell("get_server_metadata", "elpv")
    assert server["name"] == "sightline"
    assert {"binary_tensor_data", "classification", "statistics"} <= set(server["extensions"])
    metadata = triton.tell("get_model_metadata", "elpv", "elpv", "1")
    assert (metadata["name"], metadata["versions"]) == ("elpv", ["1"])
    tensors = {tensor["name"]: tensor for tensor in metadata["inputs"] + metadata["outputs"]}
    assert tensors["pixels"]["datatype"] == "UINT8"
    assert [int(n) for n in tensors["tensor"]["shape"]] == [-1, 3, SIDE, SIDE]
    assert [int(n) for n in tensors["probabilities"]["shape"]] == [-1, 2]


def test_the_config_has_types_formats_and_the_batch(triton: Triton) -> None:
    config = triton.tell("get_model_config", "elpv", "elpv")
    config = config.get("config", config)  # gRPC wraps it
    assert config["max_batch_size"] == 64
    inputs = {tensor["name"]: tensor for tensor in config["input"]}
    assert inputs["image"]["data_type"] == "TYPE_STRING"
    assert inputs["pixels"]["format"] == "FORMAT_NHWC"
    assert inputs["tensor"]["format"] == "FORMAT_NCHW"
    assert [int(n) for n in inputs["tensor"]["dims"]] == [3, SIDE, SIDE]


def test_the_index_lists_the_model(triton: Triton) -> None:
    index = triton.tell("get_model_repository_index", "elpv")
    models = index["models"] if triton.wire == "grpc" else index
    elpv = next(model for model in models if model["name"] == "elpv")
    assert (elpv["version"], elpv["state"]) == ("1", "READY")


def test_statistics_count_requests_and_images(triton: Triton, pixels: Pixels) -> None:
    def counted() -> Any:
        stats = triton.tell("get_inference_statistics", "elpv", "elpv")["model_stats"][0]
        parts = stats["inference_stats"]
        return {name: int(parts[name].get("count", 0)) for name in parts} | {
            "images": int(stats["inference_count"])
        }

    triton.infer("elpv", triton.given("pixels", "UINT8", pixels))
    before = counted()
    triton.infer("elpv", triton.given("pixels", "UINT8", pixels))
    after = counted()
    assert after["success"] == before["success"] + 1
    assert after["images"] == before["images"] + 2
    # perf_analyzer reads every one of these.
    assert set(after) >= {
        *("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"),
        *("cache_hit", "cache_miss"),
    }


# --- inference ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_encoded_images_pixels_and_planes_are_scored(
    triton: Triton, image_file: ImageFile, pixels: Pixels, shape: tuple[int, ...]
) -> None:
    files = np.array([image_file(1), image_file(2)], dtype=np.object_).reshape(shape)
    planes = pixels.transpose(0, 3, 1, 2).astype(np.float32)
    encoded = triton.infer("elpv", triton.given("image", "BYTES", files), request_id="a")
    assert encoded.as_numpy("probabilities").shape == (2, 2)
    assert encoded.as_numpy("embedding").shape == (2, 8)
    assert {label.decode() for label in encoded.as_numpy("label")} <= {"good", "defective"}
    response = encoded.get_response()
    told = response["id"] if triton.wire == "http" else response.id
    assert told == "a"
    ready = triton.infer("elpv", triton.given("pixels", "UINT8", pixels))
    floats = triton.infer("elpv", triton.given("tensor", "FP32", planes))
    for name in ("probabilities", "embedding"):
        np.testing.assert_array_equal(ready.as_numpy(name), floats.as_numpy(name))


def test_both_wires_give_the_same_numbers(
    http_address: str, grpc_address: str, image_file: ImageFile
) -> None:
    file = np.array([image_file(3)], dtype=np.object_)
    found = []
    for wire, address in (("http", http_address), ("grpc", grpc_address)):
        api = getattr(tritonclient, wire)
        one = Triton(wire, api, api.InferenceServerClient(address))
        found.append(one.infer("elpv", one.given("image", "BYTES", file)))
    for name in ("probabilities", "embedding"):
        np.testing.assert_allclose(found[0].as_numpy(name), found[1].as_numpy(name), atol=1e-6)


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False])
def test_json_and_binary_tensors_are_the_same(
    http_address: str, pixels: Pixels, binary_input: bool, binary_output: bool
) -> None:
    api = tritonclient.http
    one = Triton("http", api, api.InferenceServerClient(http_address))
    names = ("probabilities", "embedding")
    outputs = [api.InferRequestedOutput(name, binary_data=binary_output) for name in names]
    given = one.given("pixels", "UINT8", pixels, binary_data=binary_input)
    result = one.infer("elpv", given, outputs=outputs)
    expected = one.infer("elpv", one.given("pixels", "UINT8", pixels))
    for name in names:
        np.testing.assert_allclose(result.as_numpy(name), expected.as_numpy(name), atol=1e-6)


def test_an_image_in_json_is_base64(http_address: str, image_file: ImageFile) -> None:
    api = tritonclient.http
    one = Triton("http", api, api.InferenceServerClient(http_address))
    text = np.array([[base64.b64encode(image_file(3)).decode()]], dtype=np.object_)
    plain = one.infer("elpv", one.given("image", "BYTES", text, binary_data=False))
    raw = np.array([[image_file(3)]], dtype=np.object_)
    binary = one.infer("elpv", one.given("image", "BYTES", raw))
    np.testing.assert_allclose(
        plain.as_numpy("probabilities"), binary.as_numpy("probabilities"), atol=1e-6
    )


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_bodies_are_compressed_both_ways(http_address: str, pixels: Pixels, algorithm: str) -> None:
    api = tritonclient.http
    one = Triton("http", api, api.InferenceServerClient(http_address))
    given = one.given("pixels", "UINT8", pixels)
    plain = one.infer("elpv", given)
    packed = one.infer(
        "elpv",
        given,
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    np.testing.assert_array_equal(plain.as_numpy("embedding"), packed.as_numpy("embedding"))


def test_grpc_compresses_what_it_sends(grpc_address: str, pixels: Pixels) -> None:
    one = Triton("grpc", tritonclient.grpc, tritonclient.grpc.InferenceServerClient(grpc_address))
    given = one.given("pixels", "UINT8", pixels)
    packed = one.infer("elpv", given, compression_algorithm="gzip")
    plain = one.infer("elpv", given)
    np.testing.assert_array_equal(plain.as_numpy("embedding"), packed.as_numpy("embedding"))


def test_classification_gives_value_index_label(triton: Triton, pixels: Pixels) -> None:
    output = triton.api.InferRequestedOutput("probabilities", class_count=5)
    result = triton.infer("elpv", triton.given("pixels", "UINT8", pixels), outputs=[output])
    lines = result.as_numpy("probabilities")
    assert lines.shape == (2, 2)  # no more than there are classes
    for row in lines:
        values = [float(line.decode().split(":")[0]) for line in row]
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-5)
        for line in row:
            _, index, label = line.decode().split(":")
            assert ["good", "defective"][int(index)] == label


def test_a_model_without_classes_gives_vectors(triton: Triton, pixels: Pixels) -> None:
    result = triton.infer("shapes", triton.given("pixels", "UINT8", pixels))
    np.testing.assert_allclose(np.linalg.norm(result.as_numpy("embedding"), axis=1), 1, atol=1e-5)


def test_requests_run_at_once(triton: Triton, pixels: Pixels) -> None:
    given = triton.given("pixels", "UINT8", pixels)
    expected = triton.infer("elpv", given).as_numpy("embedding")
    if triton.wire == "http":
        client = triton.api.InferenceServerClient(triton.client._parsed_url.netloc, concurrency=8)
        waiting = [client.async_infer("elpv", [given]) for _ in range(16)]
        answers = [each.get_result() for each in waiting]
    else:
        done: queue.Queue[Any] = queue.Queue()
        for _ in range(16):
            triton.client.async_infer(
                "elpv",
                [given],
                lambda result, error: done.put((result, error)),
                **triton.chosen("elpv"),
            )
        pairs = [done.get(timeout=30) for _ in range(16)]
        assert [error for _, error in pairs] == [None] * 16
        answers = [result for result, _ in pairs]
    for answer in answers:
        np.testing.assert_array_equal(answer.as_numpy("embedding"), expected)


def test_a_stream_answers_each_request(grpc_address: str, image_file: ImageFile) -> None:
    one = Triton("grpc", tritonclient.grpc, tritonclient.grpc.InferenceServerClient(grpc_address))
    done: queue.Queue[Any] = queue.Queue()
    one.client.start_stream(
        lambda result, error: done.put((result, error)), headers={"application": "elpv"}
    )
    for number, file in enumerate((image_file(1), b"no image", image_file(2))):
        given = one.given("image", "BYTES", np.array([file], dtype=np.object_))
        one.client.async_stream_infer("elpv", [given], request_id=str(number))
    answers = [done.get(timeout=30) for _ in range(3)]
    one.client.stop_stream()
    (first, no_error), (nothing, error), (last, _) = answers
    assert no_error is None
    assert (first.get_response().id, last.get_response().id) == ("0", "2")
    assert nothing is None or nothing.get_response().id == "1"
    assert "not an image" in str(error)


# --- labels that change ---------------------------------------------------------------------------


def test_the_answer_names_the_label_revision(triton: Triton, pixels: Pixels) -> None:
    result = triton.infer("caps", triton.given("pixels", "UINT8", pixels))
    response = result.get_response()
    if triton.wire == "http":
        assert response["parameters"] == {"label_revision": 0}
    else:
        assert response.parameters["label_revision"].int64_param == 0


def test_a_revision_that_is_not_there_is_told(triton: Triton, pixels: Pixels) -> None:
    given = triton.given("pixels", "UINT8", pixels)
    triton.infer("caps", given, parameters={"min_revision": 0})
    with pytest.raises(InferenceServerException, match="label revision 7 is not in effect"):
        triton.infer("caps", given, parameters={"min_revision": 7})


# --- what is said to wrong requests ---------------------------------------------------------------


def test_errors_are_told(triton: Triton, pixels: Pixels) -> None:
    text = np.array([b"no image"], dtype=np.object_)
    with pytest.raises(InferenceServerException, match="not an image"):
        triton.infer("elpv", triton.given("image", "BYTES", text))
    with pytest.raises(InferenceServerException, match="has the shape"):
        triton.infer("elpv", triton.given("pixels", "UINT8", pixels[:, :32]))
    with pytest.raises(InferenceServerException, match="unknown input 'picture'"):
        triton.infer("elpv", triton.given("picture", "UINT8", pixels))
    with pytest.raises(InferenceServerException, match="version"):
        triton.infer("elpv", triton.given("pixels", "UINT8", pixels), model_version="2")
    planes = np.full((1, 3, SIDE, SIDE), np.nan, np.float32)
    with pytest.raises(InferenceServerException, match="from 0 to 255"):
        triton.infer("elpv", triton.given("tensor", "FP32", planes))


def test_codes_are_those_of_the_wire(triton: Triton, pixels: Pixels) -> None:
    output = triton.api.InferRequestedOutput("logits")
    with pytest.raises(InferenceServerException) as caught:
        triton.infer("elpv", triton.given("pixels", "UINT8", pixels), outputs=[output])
    assert (
        caught.value.status() == {"http": "400", "grpc": "StatusCode.INVALID_ARGUMENT"}[triton.wire]
    )


def test_what_is_not_offered_is_refused(triton: Triton) -> None:
    chosen = triton.chosen("elpv")
    with pytest.raises(InferenceServerException):
        triton.client.get_system_shared_memory_status(**chosen)
    with pytest.raises(InferenceServerException, match="no admin key"):
        triton.client.unload_model("elpv", **chosen)


def test_without_metadata_grpc_cannot_tell_which_application_is_meant(grpc_address: str) -> None:
    client = tritonclient.grpc.InferenceServerClient(grpc_address)
    with pytest.raises(InferenceServerException, match="metadata"):
        client.get_model_metadata("elpv")


@pytest.mark.lone
def test_a_lone_model_is_found_without_metadata(grpc_address: str, pixels: Pixels) -> None:
    client = tritonclient.grpc.InferenceServerClient(grpc_address)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata().name == "sightline"
    tensor = tritonclient.grpc.InferInput("pixels", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    assert client.infer("elpv", [tensor]).as_numpy("probabilities").shape == (2, 2)
