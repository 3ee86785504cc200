"""The Open Inference Protocol: JSON and binary tensors, and what is said to wrong ones."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import threading
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from models.predictor import Predictor
from serve_app.oip.infer import parse_aside
from tests.serve_app.conftest import SIZE, Response, encode, refused

LENGTH = "Inference-Header-Content-Length"


def image_tensor(*images: bytes, **changes: object) -> dict[str, Any]:
    data = [base64.b64encode(image).decode() for image in images]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(images), 1], "data": data}
    return {**tensor, **changes}


def with_length(*images: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(image)) + image for image in images)


def post_binary(
    client: TestClient, tensor: dict[str, Any], raw: bytes, *, path: str = "/infer"
) -> Response:
    head = json.dumps({"inputs": [tensor]}).encode()
    return client.post(path, content=head + raw, headers={LENGTH: str(len(head))})


def outputs_of(answer: Response) -> dict[str, Any]:
    """Read outputs of an answer, JSON or binary, by name."""
    assert answer.status_code == 200, answer.text
    head = int(answer.headers.get(LENGTH, len(answer.content)))
    position, found = head, {}
    for output in json.loads(answer.content[:head])["outputs"]:
        if "data" in output:
            values = output["data"]
        else:
            size = output["parameters"]["binary_data_size"]
            raw = answer.content[position : position + size]
            position += size
            values = strings(raw) if output["datatype"] == "BYTES" else np.frombuffer(raw, "<f4")
        found[output["name"]] = np.array(values).reshape(output["shape"])
    assert position == len(answer.content)
    return found


def strings(raw: bytes) -> list[str]:
    found = []
    while raw:
        (size,) = struct.unpack_from("<I", raw)
        found.append(raw[4 : 4 + size].decode())
        raw = raw[4 + size :]
    return found


# --- what the model says of itself ---------------------------------------------------------------


def test_metadata_names_inputs_and_outputs(client: TestClient) -> None:
    metadata = client.get("").json()
    assert metadata == client.get("/versions/1").json() == client.get("/").json()
    assert (metadata["name"], metadata["versions"]) == ("tiny", ["1"])
    assert metadata["inputs"] == [
        {"name": "image", "datatype": "BYTES", "shape": [-1, 1]},
        {"name": "pixels", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]},
        {"name": "tensor", "datatype": "FP32", "shape": [-1, 3, SIZE, SIZE]},
    ]
    assert metadata["outputs"] == [
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "embedding", "datatype": "FP32", "shape": [-1, 8]},
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
    ]


def test_ready_names_the_model(client: TestClient) -> None:
    assert client.get("/ready").json() == {"name": "tiny", "ready": True}
    refused(client.get("/versions/7/ready"), 404, "unknown_version")


def test_config_tells_the_engine_and_its_proof(client: TestClient, predictor: Predictor) -> None:
    config = client.get("/config").json()
    assert config["max_batch_size"] == 4
    assert config["output"][0] == {"name": "probabilities", "data_type": "TYPE_FP32", "dims": [2]}
    assert config["sightline"]["engine"]["name"] == predictor.engine.name
    assert config["sightline"]["proof"]["lowest_cosine"] > 0.99
    assert config["sightline"]["start"] == {}  # nobody measured; a replica does
    assert config["sightline"]["classes"] == ["good", "defective"]


# --- inference -----------------------------------------------------------------------------------


def test_json_and_binary_and_the_bare_body_give_the_same_outputs(
    client: TestClient, predictor: Predictor
) -> None:
    image = encode(3)
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1, 1]}
    raw = with_length(image)
    answers = [
        client.post("/infer", json={"inputs": [image_tensor(image)]}),
        post_binary(client, {**tensor, "parameters": {"binary_data_size": len(raw)}}, raw),
        client.post("/infer", content=image, headers={LENGTH: "0"}),
    ]
    expected = predictor.predict(predictor.prepare(image)[None])
    assert expected.probabilities is not None
    for outputs in map(outputs_of, answers):
        np.testing.assert_allclose(outputs["probabilities"], expected.probabilities, atol=1e-6)
        np.testing.assert_allclose(outputs["embedding"], expected.embedding, atol=1e-6)
        assert outputs["label"].tolist() == [predictor.classify(expected)[0].label]


def test_pixels_give_the_same_outputs_as_the_image_they_come_from(
    client: TestClient, predictor: Predictor
) -> None:
    images = [encode(seed) for seed in (1, 2)]
    pixels = np.stack([predictor.prepare(image) for image in images])
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": list(pixels.shape)}
    binary = post_binary(
        client, {**tensor, "parameters": {"binary_data_size": pixels.size}}, pixels.tobytes()
    )
    nested = client.post("/infer", json={"inputs": [{**tensor, "data": pixels.tolist()}]})
    flat = client.post("/infer", json={"inputs": [{**tensor, "data": pixels.reshape(-1).tolist()}]})
    expected = outputs_of(client.post("/infer", json={"inputs": [image_tensor(*images)]}))
    for answer in (binary, nested, flat):
        np.testing.assert_allclose(
            outputs_of(answer)["probabilities"], expected["probabilities"], atol=1e-6
        )


def test_outputs_are_those_asked_in_the_form_asked(client: TestClient) -> None:
    wanted = [
        {"name": "label"},
        {"name": "embedding", "parameters": {"binary_data": True}},
    ]
    answer = client.post(
        "/infer", json={"inputs": [image_tensor(encode())], "outputs": wanted, "id": "7"}
    )
    head = json.loads(answer.content[: int(answer.headers[LENGTH])])
    assert head["id"] == "7"
    assert (head["model_name"], head["model_version"]) == ("tiny", "1")
    assert [output["name"] for output in head["outputs"]] == ["label", "embedding"]
    assert "data" in head["outputs"][0]
    assert head["outputs"][1]["parameters"] == {"binary_data_size": 32}


def test_omitted_outputs_are_binary_when_the_request_says_so(client: TestClient) -> None:
    request = {"inputs": [image_tensor(encode())], "parameters": {"binary_data_output": True}}
    answer = client.post("/infer", json=request)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert set(outputs_of(answer)) == {"probabilities", "embedding", "label"}


def test_classification_answers_value_index_label(client: TestClient) -> None:
    wanted = [{"name": "probabilities", "parameters": {"classification": 1}}]
    request = {"inputs": [image_tensor(encode(1), encode(2))], "outputs": wanted}
    outputs = outputs_of(client.post("/infer", json=request))
    assert outputs["probabilities"].shape == (2, 1)
    value, index, label = outputs["probabilities"][0, 0].split(":")
    best = client.post("/classify", content=encode(1)).json()
    assert float(value) == pytest.approx(best["confidence"], abs=1e-6)
    assert ["good", "defective"][int(index)] == label == best["label"]


def test_data_may_be_nested_one_list_per_image(client: TestClient) -> None:
    flat = image_tensor(encode(1), encode(2))
    nested = {**flat, "data": [[element] for element in flat["data"]]}
    answers = [client.post("/infer", json={"inputs": [tensor]}) for tensor in (flat, nested)]
    assert answers[0].status_code == 200
    assert answers[0].json() == answers[1].json()


# --- wrong tensors -------------------------------------------------------------------------------

PIXELS = {"name": "pixels", "datatype": "UINT8"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "picture"}, "unknown input 'picture'; expected image or pixels"),
        ({"name": 5}, "unknown input 5"),
        ({"datatype": "FP32"}, "has the datatype BYTES, got 'FP32'"),
        ({"datatype": None}, "has the datatype BYTES, got None"),
        ({"shape": [1, 2]}, "[B] or [B, 1], got [1, 2]"),
        ({"shape": []}, "[B] or [B, 1], got []"),
        ({"shape": [-1]}, "whole numbers, got [-1]"),
        ({"shape": [1.0]}, "whole numbers, got [1.0]"),
        ({"shape": [True]}, "whole numbers, got [True]"),
        ({**PIXELS, "shape": [2**62] * 4, "data": []}, f"[B, {SIZE}, {SIZE}, 3], got"),
        ({"shape": "1"}, "whole numbers, got '1'"),
        ({"shape": [2]}, "stands for 2 images, got 1"),
        ({"shape": [0], "data": []}, "no image"),
        ({"data": "QQ=="}, "list of base64"),
        ({"data": [7]}, "expected a base64 string, got int"),
        ({"data": [[]]}, "expected a base64 string, got list"),
        ({"data": ["%%"]}, "image 0: not valid base64"),
        ({"parameters": []}, "must be an object"),
        ({"parameters": {"binary_data_size": 4}}, "either 'data' or 'binary_data_size'"),
        ({"parameters": {"shared_memory_region": "x"}}, "shared memory"),
        ({**PIXELS, "shape": [1, SIZE, SIZE]}, f"[B, {SIZE}, {SIZE}, 3], got"),
        ({**PIXELS, "shape": [1, 3, SIZE, SIZE]}, f"[B, {SIZE}, {SIZE}, 3], got"),
        ({**PIXELS, "shape": [1, SIZE, SIZE, 3], "data": [1, 2]}, "values, got 2"),
        ({**PIXELS, "shape": [1, SIZE, SIZE, 3], "data": [256]}, "from 0 to 255"),
        ({**PIXELS, "shape": [1, SIZE, SIZE, 3], "data": [-1]}, "from 0 to 255"),
        ({**PIXELS, "shape": [1, SIZE, SIZE, 3], "data": [0.5]}, "from 0 to 255"),
        ({**PIXELS, "shape": [1, SIZE, SIZE, 3], "data": ["a"]}, "from 0 to 255"),
        ({**PIXELS, "shape": [1, SIZE, SIZE, 3], "data": [[1], [1, 2]]}, "nested evenly"),
        ({**PIXELS, "shape": [1, SIZE, SIZE, 3], "data": None}, "from 0 to 255"),
        ({**PIXELS, "shape": [1, SIZE, SIZE, 3], "data": ["x" * 9999, ""]}, "from 0 to 255"),
        ({"shape": [1], "data": ["", ""]}, "stands for 1 images, got 2"),
    ],
)
def test_a_wrong_input_is_refused_with_what_was_expected(
    client: TestClient, changes: dict[str, Any], told: str
) -> None:
    answer = client.post("/infer", json={"inputs": [image_tensor(encode(), **changes)]})
    assert answer.status_code == 400, answer.text
    assert told in answer.json()["error"]


@pytest.mark.parametrize(
    "request_body",
    [
        [],
        {},
        {"inputs": {}},
        {"inputs": []},
        {"inputs": [5]},
        {"inputs": [image_tensor(b"x"), image_tensor(b"x")]},
        {"inputs": [image_tensor(b"x")], "id": 5},
        {"inputs": [image_tensor(b"x")], "parameters": 5},
        {"inputs": [image_tensor(b"x")], "outputs": 5},
        {"inputs": [image_tensor(b"x")], "outputs": [5]},
        {"inputs": [image_tensor(b"x")], "outputs": [{"name": "logits"}]},
        {"inputs": [image_tensor(b"x")], "outputs": [{"name": "label"}] * 2},
        {"inputs": [image_tensor(b"x")], "outputs": [{"name": "label"}] * 9_000},
        {"inputs": [image_tensor(b"x")], "outputs": [{"name": "label"}] * 10_000},
        {"inputs": [image_tensor(b"x")], "outputs": [{"name": ["label"]}]},
        {
            "inputs": [image_tensor(b"x")],
            "outputs": [{"name": "label", "parameters": {"classification": 2}}],
        },
        {
            "inputs": [image_tensor(b"x")],
            "outputs": [{"name": "probabilities", "parameters": {"classification": -1}}],
        },
    ],
)
def test_a_wrong_request_is_refused(client: TestClient, request_body: object) -> None:
    answer = client.post("/infer", json=request_body)
    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"error", "code"}


@pytest.mark.parametrize("length", ["-1", "x", "99999999", "1.5"])
def test_a_wrong_header_length_is_refused(client: TestClient, length: str) -> None:
    answer = client.post("/infer", content=b"{}", headers={LENGTH: length})
    assert LENGTH in refused(answer, 400, "bad_request")


@pytest.mark.parametrize(
    ("raw", "stated"),
    [
        (b"\x05\x00\x00\x00ab", 6),  # the element is longer than the tensor
        (b"\x05\x00", 2),  # ends within a length
        (b"\x02\x00\x00\x00ab", 5),  # more stated than sent
        (b"\x02\x00\x00\x00ab", -6),
        (b"\x02\x00\x00\x00ab", "6"),
        (b"\x00\x00\x00\x00\x00\x00\x00\x00", 8),  # two elements, shape of one
        (b"", 0),
    ],
)
def test_a_wrong_binary_tensor_is_refused(client: TestClient, raw: bytes, stated: object) -> None:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1]}
    answer = post_binary(client, {**tensor, "parameters": {"binary_data_size": stated}}, raw)
    assert answer.status_code == 400, answer.text


def test_a_bad_image_fails_the_request_and_is_named(client: TestClient) -> None:
    answer = client.post("/infer", json={"inputs": [image_tensor(encode(), encode()[:300])]})
    assert refused(answer, 422, "image_decode").startswith("image 1: ")


@pytest.mark.parametrize("count", [5, 2**31, 2**62, 2**63, 10**18])
def test_a_shape_that_promises_too_many_images_is_refused_before_anything_is_made(
    client: TestClient, count: int
) -> None:
    for tensor in (
        {"name": "image", "datatype": "BYTES", "shape": [count], "data": []},
        {**PIXELS, "shape": [count, SIZE, SIZE, 3], "data": []},
        {"name": "tensor", "datatype": "FP32", "shape": [count, 3, SIZE, SIZE], "data": []},
    ):
        refused(client.post("/infer", json={"inputs": [tensor]}), 413, "too_many_images")


@pytest.mark.parametrize("nested", [False, True])
def test_more_numbers_than_the_shape_stands_for_are_refused_unread(
    client: TestClient, nested: bool
) -> None:
    """They were made into an array first, while nobody else was answered."""
    rows: list[Any] = [[[0] * 3] * SIZE] * (SIZE + 1) if nested else [[0] * (SIZE * SIZE * 3 + 3)]
    tensor = {**PIXELS, "shape": [1, SIZE, SIZE, 3], "data": [rows] if nested else rows[0]}
    sentence = refused(client.post("/infer", json={"inputs": [tensor]}), 400, "bad_request")
    assert "stands for 12,288 values, got 12," in sentence


def test_what_is_large_is_read_on_a_thread() -> None:
    async def run(num_bytes: int) -> bool:
        thread = await parse_aside(num_bytes, threading.current_thread)
        return thread is threading.current_thread()

    assert [asyncio.run(run(num_bytes)) for num_bytes in (1 << 18, (1 << 18) + 1)] == [True, False]


@pytest.mark.parametrize("value", ["1", -1, 1.5, True, [], None, {"a": 1}])
def test_a_wrong_min_revision_is_refused(client: TestClient, value: object) -> None:
    request = {"inputs": [image_tensor(encode())], "parameters": {"min_revision": value}}
    assert "'min_revision'" in refused(client.post("/infer", json=request), 400, "bad_request")


def test_a_model_whose_labels_do_not_change_has_no_revisions(client: TestClient) -> None:
    request = {"inputs": [image_tensor(encode())], "parameters": {"min_revision": 1}}
    assert "do not change" in refused(client.post("/infer", json=request), 400, "bad_parameter")
    assert "parameters" not in client.post("/infer", json={"inputs": request["inputs"]}).json()


def test_too_many_images_are_refused(client: TestClient) -> None:
    answer = client.post("/infer", json={"inputs": [image_tensor(*[b"x"] * 5)]})
    refused(answer, 413, "too_many_images")
