"""The serve file through real Ray Serve and HAProxy, asked by clients that we did not write."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from tests.bundles import tiny_bundle
from tests.serve_app.conftest import CONFIG, Server, encode, run_application

pytestmark = [pytest.mark.e2e, pytest.mark.ray]


# --- plain HTTP ----------------------------------------------------------------------------------


def test_an_image_is_scored_through_haproxy(server: Server) -> None:
    answer = httpx.post(f"{server.url}/v2/models/elpv/classify", content=encode(), timeout=20)
    assert answer.status_code == 200
    assert answer.json()["label"] in ("good", "defective")
    assert (answer.json()["model"], answer.json()["engine"]) == ("elpv", "openvino")


def test_scoring_goes_past_what_serve_does_for_a_request_and_other_calls_do_not(
    server: Server,
) -> None:
    # Serve itself sends an id back as it came; we only what is sane.
    url, insane = f"{server.url}/v2/models/elpv", {"x-request-id": "two words"}
    scored = httpx.post(f"{url}/classify", content=encode(), headers=insane, timeout=20)
    ready = httpx.get(f"{url}/ready", headers=insane, timeout=20)
    assert (scored.status_code, ready.status_code) == (200, 200)
    assert "two words" not in scored.headers.get_list("x-request-id")
    assert "two words" in ready.headers.get_list("x-request-id")


def test_a_request_that_asks_serve_for_a_timeout_has_it(server: Server) -> None:
    answer = httpx.post(
        f"{server.url}/v2/models/elpv/classify",
        content=encode(size=(2000, 2000)),
        headers={"x-request-timeout-seconds": "0.001"},
        timeout=20,
    )
    assert answer.status_code == 408
    assert "timed out" in answer.text


def test_a_replica_tells_how_long_the_parts_of_its_start_took(server: Server) -> None:
    config = httpx.get(f"{server.url}/v2/models/elpv/config", timeout=20).json()
    start = config["sightline"]["start"]
    total = start.pop("total")
    assert {"imports", "artifacts", "read", "compile", "proof", "labels", "http"} <= set(start)
    assert sum(start.values()) == pytest.approx(total, abs=0.01)
    assert min(start["imports"], start["compile"], start["proof"]) > 0
    assert start["imports"] < total < server.seconds_to_ready


def test_the_catalog_lists_the_model_and_is_ready(server: Server) -> None:
    assert httpx.get(f"{server.url}/v2/health/live").json() == {"live": True}
    assert httpx.get(f"{server.url}/v2/health/ready").json() == {"live": True, "ready": True}
    index = httpx.post(f"{server.url}/v2/repository/index", json={"ready": True}).json()
    assert index == [{"name": "elpv", "version": "1", "state": "READY", "reason": ""}]
    assert "binary_tensor_data" in httpx.get(f"{server.url}/v2").json()["extensions"]


@pytest.mark.parametrize(
    "path", ["/v2/models/elvp", "/v2/models/elvp/classify", "/v2/models/elvp/ready"]
)
def test_a_model_that_is_not_deployed_is_404_in_the_error_form(server: Server, path: str) -> None:
    answer = httpx.post(f"{server.url}{path}", content=encode())
    assert answer.status_code == 404
    assert answer.json()["code"] == "unknown_model"
    assert "'elvp'" in answer.json()["error"]


def test_a_body_larger_than_the_limit_is_413_through_haproxy(server: Server) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(70):
            yield bytes(1 << 20)

    answer = httpx.post(f"{server.url}/v2/models/elpv/classify", content=chunks(), timeout=60)
    assert answer.status_code == 413
    assert answer.json()["code"] == "body_too_large"


def test_more_requests_than_the_queue_takes_are_429_and_the_others_are_answered(
    server: Server, tmp_path: Path
) -> None:
    from ray import serve

    uri = tiny_bundle(tmp_path, name="narrow")
    application = {
        "import_path": "serve_app.app:build",
        "name": "narrow",
        "route_prefix": "/v2/models/narrow",
    }
    limits = {"max_requests": 2, "num_cpus": 0.1}
    run_application(server, application, {"bundle": uri, "replicas": 1, **limits})
    url = f"{server.url}/v2/models/narrow/classify"
    image = encode(size=(1200, 1200))

    def ask(_: int) -> httpx.Response:
        return httpx.post(url, content=image, timeout=60)

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, range(120)))
    serve.delete("narrow")
    codes = {answer.status_code for answer in answers}
    assert codes == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["code"] == "queue_full"


def test_a_missing_bundle_fails_the_deployment_with_the_place_that_was_tried(
    server: Server, tmp_path: Path
) -> None:
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    application = {"import_path": "serve_app.app:build", "name": "none", "route_prefix": "/none"}
    relative = ".sightline/no-such-models/elpv/1"
    args = {"bundle": relative, "replicas": 1, "num_cpus": 0.1}
    with pytest.raises(RuntimeError):
        run_application(server, application, args)
    status = serve.status().applications["none"]
    index = httpx.post(f"{server.url}/v2/repository/index").json()
    serve.delete("none")
    assert status.status == ApplicationStatus.DEPLOY_FAILED
    assert f"no bundle at {Path.cwd() / relative}" in str(status.deployments["model"].message)
    assert ("none", "UNAVAILABLE") in [(entry["name"], entry["state"]) for entry in index]


# --- tritonclient --------------------------------------------------------------------------------


@pytest.fixture
def triton(server: Server) -> Iterator[Any]:
    """The Open Inference Protocol client of NVIDIA Triton."""
    http = pytest.importorskip("tritonclient.http")
    with http.InferenceServerClient(server.address) as client:
        yield client


def _input(array: np.ndarray, *, name: str, datatype: str, is_binary: bool) -> Any:
    import tritonclient.http as http

    tensor = http.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=is_binary)
    return tensor


def test_tritonclient_reads_health_and_metadata(triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("elpv")
    assert triton.is_model_ready("elpv", "1")
    assert not triton.is_model_ready("elpv", "2")
    assert not triton.is_model_ready("elvp")
    assert triton.get_server_metadata()["name"] == "sightline"
    assert triton.get_model_metadata("elpv")["versions"] == ["1"]
    assert triton.get_model_config("elpv")["name"] == "elpv"
    assert triton.get_model_repository_index()[0]["name"] == "elpv"


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_tritonclient_scores_encoded_images_in_its_default_binary_form(
    triton: Any, server: Server, shape: tuple[int, ...]
) -> None:
    images = [encode(1), encode(2)]
    array = np.array(images, dtype=np.object_).reshape(shape)
    tensor = _input(array, name="image", datatype="BYTES", is_binary=True)
    result = triton.infer("elpv", [tensor], model_version="1", request_id="a")
    assert result.get_response()["id"] == "a"
    for row, image in enumerate(images):
        expected = httpx.post(f"{server.url}/v2/models/elpv/classify", content=image).json()
        assert result.as_numpy("label")[row].decode() == expected["label"]
        assert result.as_numpy("probabilities")[row].max() == pytest.approx(expected["confidence"])
    assert result.as_numpy("embedding").shape == (2, 8)


def test_tritonclient_scores_encoded_images_without_binary_data(triton: Any) -> None:
    import base64

    import tritonclient.http as http

    image = encode(3)
    # JSON has no bytes, and the client refuses those that are no UTF-8: base64 it is.
    text = np.array([[base64.b64encode(image)]], dtype=np.object_)
    tensor = _input(text, name="image", datatype="BYTES", is_binary=False)
    names = ("probabilities", "embedding", "label")
    outputs = [http.InferRequestedOutput(name, binary_data=False) for name in names]
    plain = triton.infer("elpv", [tensor], outputs=outputs)
    raw = np.array([[image]], dtype=np.object_)
    binary = triton.infer("elpv", [_input(raw, name="image", datatype="BYTES", is_binary=True)])
    for name in ("probabilities", "embedding"):
        np.testing.assert_allclose(plain.as_numpy(name), binary.as_numpy(name), atol=1e-6)
    assert plain.as_numpy("label")[0] == binary.as_numpy("label")[0].decode()


@pytest.mark.parametrize("is_binary", [True, False])
def test_tritonclient_scores_pixels_and_reads_classification(triton: Any, is_binary: bool) -> None:
    import tritonclient.http as http

    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    tensor = _input(pixels, name="pixels", datatype="UINT8", is_binary=is_binary)
    output = http.InferRequestedOutput("probabilities", binary_data=is_binary, class_count=2)
    lines = triton.infer("elpv", [tensor], outputs=[output]).as_numpy("probabilities")
    assert lines.shape == (2, 2)
    first = lines[0, 0].decode() if is_binary else lines[0, 0]
    value, index, label = first.split(":")
    assert float(value) >= 0.5
    assert ["good", "defective"][int(index)] == label


def test_tritonclient_reads_the_config_and_the_statistics(triton: Any) -> None:
    config = triton.get_model_config("elpv", "1")
    inputs = {tensor["name"]: tensor for tensor in config["input"]}
    assert inputs["tensor"]["dims"] == [3, 64, 64]
    assert inputs["tensor"]["format"] == "FORMAT_NCHW"
    pixels = np.zeros((3, 64, 64, 3), np.uint8)

    def counted() -> tuple[int, int]:
        (stats,) = triton.get_inference_statistics("elpv")["model_stats"]
        return stats["inference_stats"]["success"]["count"], stats["inference_count"]

    requests, images = counted()
    triton.infer("elpv", [_input(pixels, name="pixels", datatype="UINT8", is_binary=True)])
    assert counted() == (requests + 1, images + 3)


@pytest.mark.parametrize("encoding", [None, "gzip", "deflate"])
def test_tritonclient_scores_planes_of_floats_in_a_view(
    triton: Any, server: Server, encoding: str | None
) -> None:
    import tritonclient.http as http

    pixels = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    planes = pixels.transpose(0, 3, 1, 2).astype(np.float32)
    expected = triton.infer(
        "elpv", [_input(pixels, name="pixels", datatype="UINT8", is_binary=True)]
    ).as_numpy("probabilities")
    with http.InferenceServerClient(f"{server.address}/v2/models/elpv/views/tensor") as view:
        assert view.is_server_ready()
        assert view.is_model_ready("elpv", "1")
        (given,) = view.get_model_metadata("elpv")["inputs"]
        tensor = _input(planes, name=given["name"], datatype=given["datatype"], is_binary=True)
        result = view.infer(
            "elpv",
            [tensor],
            request_compression_algorithm=encoding,
            response_compression_algorithm=encoding,
        )
    (output,) = result.get_response()["outputs"]
    assert output["name"] == "probabilities"
    np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=1e-6)


def test_tritonclient_is_told_what_is_wrong(triton: Any) -> None:
    import tritonclient.http as http
    from tritonclient.utils import InferenceServerException

    pixels = np.zeros((1, 64, 64, 3), np.uint8)
    tensor = _input(pixels, name="pixels", datatype="UINT8", is_binary=True)
    text = np.array([b"no image"], dtype=np.object_)
    for wrong, told, arguments in (
        (_input(text, name="image", datatype="BYTES", is_binary=True), "not an image", {}),
        (_input(pixels[:, 1:], name="pixels", datatype="UINT8", is_binary=True), "the shape", {}),
        (_input(pixels, name="picture", datatype="UINT8", is_binary=True), "unknown input", {}),
        (tensor, "unknown output 'logits'", {"outputs": [http.InferRequestedOutput("logits")]}),
        (tensor, "answers here in version 1", {"model_version": "2"}),
        (tensor, "label revision 99 is not in effect", {"parameters": {"min_revision": 99}}),
    ):
        with pytest.raises(InferenceServerException, match=told):
            triton.infer("elpv", [wrong], **arguments)
    with pytest.raises(InferenceServerException, match="no model 'elvp' here"):
        triton.infer("elvp", [tensor])


# --- the command line ----------------------------------------------------------------------------


def test_the_serve_file_is_valid_for_serve_deploy() -> None:
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
    assert [application.route_prefix for application in schema.applications] == [
        "/",
        "/v2/models/elpv",
    ]


def test_curl_scores_an_image_file(server: Server, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    (tmp_path / "image.jpg").write_bytes(encode())
    url = f"{server.url}/v2/models/elpv/classify"
    command = [curl, "--silent", "--data-binary", f"@{tmp_path / 'image.jpg'}", url]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert '"label":' in result.stdout
