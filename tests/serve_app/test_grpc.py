"""The calls of gRPC over a real channel, without Serve: what is answered, and what is said to wrong
requests.
"""

from __future__ import annotations

import pickle
import struct
import time
from collections.abc import Iterator
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest

from models.predictor import Predictor
from serve_app.keys import Keys, new_key
from serve_app.model import ServedModel
from serve_app.oip.grpc_calls import GrpcCalls
from serve_app.oip.messages import CALLS, MESSAGES, STREAM_CALLS, message
from tests.collector import collector_off
from tests.serve_app.conftest import SIZE, encode
from tests.serve_app.grpc_client import GrpcClient, image_request, infer_request, outputs_of
from tests.serve_app.grpc_server import connected, serve
from tests.serve_app.test_oip import with_length

IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1]}
PIXELS = {"name": "pixels", "datatype": "UINT8", "shape": [1, SIZE, SIZE, 3]}
TENSOR = {"name": "tensor", "datatype": "FP32", "shape": [1, 3, SIZE, SIZE]}
PARAMETER = message("InferParameter")


@pytest.fixture
def triton(model: ServedModel) -> Iterator[GrpcClient]:
    yield from connected(model)


# --- what the model says of itself ---------------------------------------------------------------


def test_the_server_and_the_model_are_live_and_ready(triton: GrpcClient) -> None:
    assert triton.call("ServerLive").live
    assert triton.call("ServerReady").ready
    assert triton.call("ModelReady", name="tiny").ready
    assert triton.call("ModelReady", name="tiny", version="1").ready
    assert not triton.call("ModelReady", name="tiny", version="2").ready
    assert not triton.call("ModelReady", name="other").ready
    assert triton.call("ServerMetadata").name == "sightline"
    assert "statistics" in triton.call("ServerMetadata").extensions


def test_metadata_and_config_are_those_of_http(triton: GrpcClient, client: Any) -> None:
    for view, path in (("", ""), ("/views/tensor", "/views/tensor/v2/models/tiny")):
        metadata = triton.call("ModelMetadata", name=f"tiny{view}")
        expected = client.get(path).json()
        assert metadata.versions == expected["versions"]
        assert metadata.platform == expected["platform"]
        for ours, theirs in ((metadata.inputs, "inputs"), (metadata.outputs, "outputs")):
            got = [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in ours]
            assert got == expected[theirs]
        config = triton.call("ModelConfig", name=f"tiny{view}").config
        told = client.get(f"{path}/config").json()
        assert (config.max_batch_size, config.backend) == (4, told["backend"])
        assert [list(tensor.dims) for tensor in config.input] == [t["dims"] for t in told["input"]]
        assert [tensor.optional for tensor in config.input] == [
            t.get("optional", False) for t in told["input"]
        ]


def test_the_config_tells_types_and_formats_by_the_numbers_of_the_protocol(
    triton: GrpcClient,
) -> None:
    config = triton.call("ModelConfig", name="tiny").config
    assert [(t.name, t.data_type, t.format) for t in config.input] == [
        ("image", 13, 0),
        ("pixels", 2, 1),
        ("tensor", 11, 2),
    ]


def test_statistics_and_the_index_are_about_this_model(triton: GrpcClient) -> None:
    before = triton.call("ModelStatistics", name="tiny").model_stats[0]
    triton.call("ModelInfer", image_request(encode()))
    after = triton.call("ModelStatistics").model_stats[0]
    assert after.inference_count == before.inference_count + 1
    assert after.inference_stats.success.count == before.inference_stats.success.count + 1
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    index = triton.call("RepositoryIndex").models
    assert [(entry.name, entry.version, entry.state) for entry in index] == [("tiny", "1", "READY")]


# --- inference -----------------------------------------------------------------------------------


def test_raw_and_typed_contents_give_the_same_outputs(
    triton: GrpcClient, predictor: Predictor
) -> None:
    image = encode(3)
    pixels = predictor.prepare(image)[None]
    planes = pixels.transpose(0, 3, 1, 2).astype("<f4")
    requests = [
        image_request(image),
        infer_request({**IMAGE, "contents": {"bytes_contents": [image]}}),
        infer_request(PIXELS, pixels.tobytes()),
        infer_request({**PIXELS, "contents": {"uint_contents": pixels.reshape(-1).tolist()}}),
        infer_request(TENSOR, planes.tobytes()),
        infer_request({**TENSOR, "contents": {"fp32_contents": planes.reshape(-1).tolist()}}),
    ]
    expected = predictor.predict(pixels)
    assert expected.probabilities is not None
    for request in requests:
        outputs = outputs_of(triton.call("ModelInfer", request))
        np.testing.assert_allclose(outputs["probabilities"], expected.probabilities, atol=1e-6)
        np.testing.assert_allclose(outputs["embedding"], expected.embedding, atol=1e-6)
        assert outputs["label"].tolist() == [predictor.classify(expected)[0].label]


def test_the_answer_names_the_request_the_model_and_its_version(triton: GrpcClient) -> None:
    response = triton.call("ModelInfer", image_request(encode(), id="7", model_version="1"))
    assert (response.id, response.model_name, response.model_version) == ("7", "tiny", "1")


def test_outputs_are_those_asked_in_their_order(triton: GrpcClient) -> None:
    wanted = [{"name": "label"}, {"name": "probabilities"}]
    response = triton.call("ModelInfer", image_request(encode(1), encode(2), outputs=wanted))
    assert [output.name for output in response.outputs] == ["label", "probabilities"]
    assert outputs_of(response)["probabilities"].shape == (2, 2)


def test_classification_answers_value_index_label(triton: GrpcClient) -> None:
    parameters = {"classification": PARAMETER(int64_param=5)}
    wanted = [{"name": "probabilities", "parameters": parameters}]
    response = triton.call("ModelInfer", image_request(encode(), outputs=wanted))
    lines = outputs_of(response)["probabilities"]
    assert lines.shape == (1, 2)
    value, index, label = lines[0, 0].split(":")
    assert float(value) >= 0.5
    assert ["good", "defective"][int(index)] == label


def test_a_stream_goes_on_after_a_bad_request(triton: GrpcClient) -> None:
    requests = [
        image_request(encode(1), id="a"),
        image_request(b"no image", id="b"),
        image_request(encode(2), model="other", id="c"),
        image_request(encode(1), id="d"),
    ]
    answers = list(triton.stream(requests))
    assert [each.infer_response.id for each in answers] == ["a", "b", "c", "d"]
    assert "not an image" in answers[1].error_message
    assert "no model 'other'" in answers[2].error_message
    first, last = (outputs_of(answers[i].infer_response) for i in (0, 3))
    np.testing.assert_array_equal(first["embedding"], last["embedding"])


# --- wrong requests ------------------------------------------------------------------------------


def typed(tensor: dict[str, Any], **contents: Any) -> Any:
    return infer_request({**tensor, "contents": contents})


def with_parameters(**values: Any) -> Any:
    given = {
        name: PARAMETER(**{("string_param" if isinstance(value, str) else "int64_param"): value})
        for name, value in values.items()
    }
    return image_request(encode(), parameters=given)


def with_many() -> dict[str, Any]:
    """Return more parameters than are read."""
    return {str(number): PARAMETER(int64_param=1) for number in range(200)}


HUGE = 2**62
WRONG = [
    (message("ModelInferRequest")(model_name="tiny"), "expected one input"),
    (infer_request({**IMAGE, "name": "picture"}, b""), "unknown input 'picture'"),
    (infer_request({**IMAGE, "datatype": "FP32"}, b""), "has the datatype BYTES, got 'FP32'"),
    (infer_request({**IMAGE, "shape": []}, b""), "[B] or [B, 1], got []"),
    (infer_request({**IMAGE, "shape": [-1]}, b""), "whole numbers, got [-1]"),
    (infer_request({**IMAGE, "shape": [0]}, b""), "holds no image"),
    (infer_request({**IMAGE, "shape": [1, 2]}, b""), "[B] or [B, 1], got [1, 2]"),
    (infer_request({**IMAGE, "shape": [1] * 9}, b""), "has 9 dimensions"),
    (infer_request({**IMAGE, "shape": [HUGE]}, b""), "limit is 4 per request"),
    (infer_request({**PIXELS, "shape": [HUGE] * 4}, b""), f"[B, {SIZE}, {SIZE}, 3], got"),
    (infer_request({**PIXELS, "shape": [HUGE, SIZE, SIZE, 3]}, b""), "limit is 4 per request"),
    (infer_request(IMAGE), "got 0 raw entries"),
    (infer_request(IMAGE, b"", b""), "got 2 raw entries"),
    (infer_request({**IMAGE, "contents": {"bytes_contents": [b"x"]}}, b""), "typed contents"),
    (infer_request(IMAGE, b"\x05\x00\x00\x00ab"), "ends within element 0"),
    (infer_request(IMAGE, b"\xff\xff\xff\xffab"), "which has 4,294,967,295 bytes"),
    (infer_request(IMAGE, b"\x05\x00"), "ends within the length"),
    (infer_request(IMAGE, with_length(b"a", b"b")), "goes on after"),
    (infer_request(IMAGE, b""), "stands for 1 images, got 0"),
    (typed(IMAGE), "stands for 1 images, got 0"),
    (typed(IMAGE, bytes_contents=[b"x"] * 5000), "stands for 1 images, got 2"),
    (infer_request(PIXELS, b"abc"), "stands for 12,288 values, got 3"),
    (typed(PIXELS, uint_contents=[256]), "from 0 to 255"),
    (typed(PIXELS, uint_contents=[256] * 12289), "stands for 12,288 values, got 12,289"),
    (typed(PIXELS, fp32_contents=[1.0]), "values, got 0"),
    (infer_request(TENSOR, b"abc"), "no whole number of FP32 values"),
    (infer_request(TENSOR, bytes(4)), "stands for 12,288 values, got 1"),
    (infer_request(TENSOR, struct.pack("<f", np.nan) * 12288), "values from 0 to 255"),
    (infer_request(TENSOR, struct.pack("<f", 255.01) * 12288), "values from 0 to 255"),
    (infer_request(TENSOR, struct.pack("<f", -0.01) * 12288), "values from 0 to 255"),
    (infer_request(TENSOR, struct.pack("<f", np.inf) * 12288), "values from 0 to 255"),
    (image_request(encode(), outputs=[{"name": "logits"}]), "unknown output 'logits'"),
    (image_request(encode(), outputs=[{"name": "label"}] * 2), "names an output twice"),
    (image_request(encode(), outputs=[{"name": "label"}] * 4_000), "lists 4000 outputs"),
    (with_parameters(min_revision="x"), "'min_revision' must be a whole number from 0, got 'x'"),
    (with_parameters(min_revision=-1), "'min_revision' must be a whole number from 0, got -1"),
    (with_parameters(min_revision=1), "the labels of this model do not change"),
    (with_parameters(**{f"p{number}": 1 for number in range(101)}), "has 101 parameters"),
    (with_parameters(shared_memory_region="x"), "shared memory"),
    (image_request(*[encode()] * 5), "holds 5 images"),
    (image_request(b"no image"), "not an image"),
    (image_request(encode(), encode()[:300]), "image 1: "),
    (image_request(bytes(399_999)), "body_too_large: the request has 400,003 bytes"),
]


@pytest.mark.parametrize(("request_", "told"), WRONG, ids=[told for _, told in WRONG])
def test_a_wrong_request_is_refused_with_what_was_expected(
    triton: GrpcClient, request_: Any, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    started = time.process_time()
    said = triton.refused("INVALID_ARGUMENT", "ModelInfer", request_)
    assert told in said
    assert len(said) < 400
    assert time.process_time() - started < 1
    assert not caplog.records  # a client's mistake is nothing to log


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model_name": "other"}, "unknown_model: no model 'other' here"),
        ({"model_name": ""}, "unknown_model: no model '' here"),
        ({"model_name": "tiny/views/"}, "unknown_model"),
        ({"model_name": "tiny/views/other"}, "unknown_model"),
        ({"model_name": "x" * 100_000}, "unknown_model"),
        ({"model_name": "tiny", "model_version": "2"}, "unknown_version: model 'tiny' answers"),
        ({"model_name": "tiny", "model_version": "latest"}, "unknown_version"),
    ],
)
def test_another_model_or_version_is_not_found(
    triton: GrpcClient, fields: dict[str, str], told: str
) -> None:
    said = triton.refused("NOT_FOUND", "ModelInfer", infer_request(IMAGE, b"", **fields))
    assert told in said
    assert len(said) < 400


class Raw:
    """Bytes in the place of a request."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def SerializeToString(self) -> bytes:
        return self._raw


def framed(number: int, payload: bytes) -> bytes:
    """Return a field of bytes as it stands in a message."""
    size = len(payload)
    length = bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14 & 127])
    return bytes([number << 3 | 2]) + length + payload


LONG = "x" * (1 << 20)


@pytest.mark.parametrize(
    "wrong",
    [
        infer_request({**IMAGE, "name": LONG}),
        infer_request({**IMAGE, "name": LONG, "shape": [1] * 9}),
        infer_request({**IMAGE, "name": LONG, "parameters": with_many()}),
        image_request(b"x", outputs=[{"name": LONG, "parameters": with_many()}]),
    ],
)
def test_what_is_told_is_short_however_long_a_name_is(triton: GrpcClient, wrong: Any) -> None:
    assert len(triton.refused("INVALID_ARGUMENT", "ModelInfer", wrong)) < 400


@pytest.mark.parametrize(
    "raw",
    [b"\x01", b"\xff" * 100, b"\x2a\x05ab", b"\x3a\xff\xff\xff\x7f", b"\x0f", b"\x0a\x01\xff"],
)
def test_bytes_that_are_no_request_are_told_so(
    triton: GrpcClient, raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("ModelInfer", "ModelReady"):
        said = triton.refused("INVALID_ARGUMENT", name, Raw(raw))
        assert said == f"bad_message: the message is no {name}Request"
    answer = next(triton.stream([Raw(raw)]))
    assert answer.error_message == "the message is no ModelInferRequest"
    assert not caplog.records


MANY = 1_000_000
OF_COUNTLESS_PARTS = {
    "inputs": b"\x2a\x00" * MANY,
    "outputs": b"\x32\x00" * MANY,
    "raw contents": b"\x3a\x00" * MANY,
    "parameters": b"\x22\x00" * MANY,
    "dimensions": framed(5, framed(3, b"\x01" * MANY)),
    "dimensions one by one": framed(5, b"\x18\x01" * MANY),
    "images": framed(5, framed(5, b"\x42\x00" * MANY)),
    "unknown fields": b"\xfa\x01\x00" * MANY,
}


@pytest.mark.parametrize("part", OF_COUNTLESS_PARTS)
def test_a_message_of_countless_parts_is_not_read(triton: GrpcClient, part: str) -> None:
    with collector_off():
        started = time.process_time()
        said = triton.refused("INVALID_ARGUMENT", "ModelInfer", Raw(OF_COUNTLESS_PARTS[part]))
        spent = time.process_time() - started
    assert said == "bad_message: the message has more than 10,000 parts"
    assert spent < 0.5


def test_a_group_hides_no_parts(triton: GrpcClient) -> None:
    """Counting ended at one, which the parser reads over, with all that lies behind it."""
    group = bytes([0xC3, 0x3E, 0xC4, 0x3E])  # beginning and end of field 1000
    said = triton.refused(
        "INVALID_ARGUMENT", "ModelInfer", Raw(group + OF_COUNTLESS_PARTS["inputs"])
    )
    assert said == "bad_message: the message is no ModelInferRequest"


@pytest.mark.parametrize(
    ("name", "fields", "code", "told"),
    [
        ("SystemSharedMemoryStatus", {}, "UNIMPLEMENTED", "not_offered: this server does not"),
        ("CudaSharedMemoryRegister", {}, "UNIMPLEMENTED", "shared memory"),
        ("TraceSetting", {}, "UNIMPLEMENTED", "trace settings"),
        ("LogSettings", {}, "UNIMPLEMENTED", "log settings"),
        ("ModelMetadata", {"name": "other"}, "NOT_FOUND", "unknown_model"),
        ("ModelConfig", {"name": "tiny", "version": "9"}, "NOT_FOUND", "unknown_version"),
        ("ModelStatistics", {"name": "other"}, "NOT_FOUND", "unknown_model"),
        ("RepositoryModelLoad", {"model_name": "tiny"}, "PERMISSION_DENIED", "admin_closed"),
        ("RepositoryModelUnload", {"model_name": "tiny"}, "PERMISSION_DENIED", "admin_closed"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(
    triton: GrpcClient, name: str, fields: dict[str, str], code: str, told: str
) -> None:
    assert told in triton.refused(code, name, **fields)


# --- keys and admission --------------------------------------------------------------------------


def test_keys_are_read_from_the_metadata(model: ServedModel) -> None:
    infer_key, line = new_key("line-4", ["infer"])
    admin_key, admin_line = new_key("ann", ["admin"])
    for address in serve(model, Keys(f"{line};{admin_line}")):
        nobody = GrpcClient(address)
        assert nobody.call("ServerReady").ready
        assert "unauthenticated" in nobody.refused("UNAUTHENTICATED", "ModelInfer")
        with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
            list(nobody.stream([image_request(encode())]))
        for metadata in ({"authorization": f"Bearer {infer_key}"}, {"x-api-key": infer_key}):
            line_4 = GrpcClient(address, metadata)
            assert line_4.call("ModelInfer", image_request(encode())).model_name == "tiny"
            said = line_4.refused("PERMISSION_DENIED", "RepositoryModelUnload", model_name="tiny")
            assert said.startswith("forbidden: ")
        ann = GrpcClient(address, {"x-api-key": admin_key})
        ann.call("RepositoryModelLoad", model_name="tiny")
        said = ann.refused("UNIMPLEMENTED", "RepositoryModelUnload", model_name="tiny")
        assert "serve file" in said


def test_beyond_the_gate_a_call_is_told_to_come_again(
    triton: GrpcClient, model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.gate, "_max_requests", 0)
    monkeypatch.setattr(model.gate, "busy_requests", 0)
    said = triton.refused("RESOURCE_EXHAUSTED", "ModelInfer", image_request(encode()))
    assert said.startswith("queue_full: ")


def test_a_message_weighs_what_it_takes_until_it_is_answered(
    triton: GrpcClient, model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It weighed as much as on the wire, though its images lie there twice, and each number in a
    list takes eleven times its byte.
    """
    weights: list[int] = []
    hold = model.gate.hold

    def noting(num_bytes: int) -> None:
        weights.append(num_bytes)
        hold(num_bytes)

    monkeypatch.setattr(model.gate, "hold", noting)
    raw = image_request(encode(1))
    typed = infer_request({**PIXELS, "contents": {"uint_contents": [1] * (SIZE * SIZE * 3)}})
    for request in (raw, typed):
        triton.call("ModelInfer", request)
    assert weights == [2 * raw.ByteSize(), 2 * typed.ByteSize() + 12 * SIZE * SIZE * 3]
    narrow = model.limits.model_copy(update={"max_queued_bytes": 5000})
    monkeypatch.setattr(model, "limits", narrow)
    triton.call("ModelInfer", typed)
    assert weights[-1] == 5000  # who comes alone is let in


def test_more_numbers_than_any_request_has_are_refused(
    triton: GrpcClient, model: ServedModel
) -> None:
    most = model.limits.max_images * SIZE * SIZE * 3
    ones = framed(5, framed(5, framed(4, b"\x01" * (most + 1))))
    assert triton.refused("INVALID_ARGUMENT", "ModelInfer", Raw(ones)) == (
        f"bad_message: the message has {most + 1:,} numbers in its contents; the most images that "
        f"a request may hold have {most:,}"
    )


def test_a_defect_of_ours_is_told_without_its_reason(
    triton: GrpcClient, model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise KeyError("a secret")

    monkeypatch.setattr(model, "score_each", fail)
    said = triton.refused("INTERNAL", "ModelInfer", image_request(encode()))
    assert said == "internal: the server failed; the reason is in its log"


# --- the messages --------------------------------------------------------------------------------


def test_a_message_travels_between_processes() -> None:
    request = image_request(encode(), id="a", parameters={"min_revision": PARAMETER(int64_param=3)})
    assert pickle.loads(pickle.dumps(request)) == request


def test_every_call_has_its_messages_and_a_method() -> None:
    for name, (request, response) in {**CALLS, **STREAM_CALLS}.items():
        assert {request, response} <= set(MESSAGES)
        assert callable(getattr(GrpcCalls, name))
