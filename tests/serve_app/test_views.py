"""Views: servers below the model's path for clients that insist on one input and one output."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from models.predictor import Predictor
from serve_app.asgi import build_asgi
from serve_app.config import ServeOptions
from serve_app.model import open_served
from serve_app.oip.infer_json import LENGTH_HEADER
from tests.bundles import tiny_bundle
from tests.serve_app.conftest import ROOT, SIZE, encode, refused
from tests.serve_app.test_oip import image_tensor, outputs_of, post_binary

SHAPES = {"image": [-1, 1], "pixels": [-1, SIZE, SIZE, 3], "tensor": [-1, 3, SIZE, SIZE]}


@pytest.fixture(params=["image", "pixels", "tensor"])
def view(request: pytest.FixtureRequest) -> str:
    """The name of a view, which is the name of its input."""
    return str(request.param)


def test_a_view_is_a_server_of_its_own(client: TestClient, view: str) -> None:
    server = f"/views/{view}/v2"
    assert client.get(server).json()["name"] == "sightline"
    assert client.get(f"{server}/health/live").json() == {"live": True}
    assert client.get(f"{server}/health/ready").json() == {"live": True, "ready": True}
    for model in (f"{server}/models/tiny", f"{server}/models/tiny/versions/1"):
        assert client.get(f"{model}/ready").json() == {"name": "tiny", "ready": True}
        metadata = client.get(model).json()
        (given,), (out,) = metadata["inputs"], metadata["outputs"]
        assert (given["name"], given["shape"]) == (view, SHAPES[view])
        assert out == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]}
        config = client.get(f"{model}/config").json()
        ((configured,), (_,)) = config["input"], config["output"]
        assert "optional" not in configured
        assert configured["dims"] == SHAPES[view][1:]
        assert client.get(f"{model}/stats").json()["model_stats"][0]["name"] == "tiny"


def test_a_view_stands_below_the_version_too(client: TestClient) -> None:
    path = "/versions/1/views/tensor/v2/models/tiny"
    assert client.get(path).json() == client.get("/views/tensor/v2/models/tiny").json()


@pytest.mark.parametrize(
    "path",
    [
        "/views",
        "/views/tensor",
        "/views/other/v2",
        "/views/tensor/v2/models/other",
        "/views/tensor/v2/models/tiny/versions/2",
        "/views/tensor/v2/models/tiny/classify",
        "/views/tensor/v2/repository/index",
    ],
)
def test_there_is_nothing_else_in_a_view(client: TestClient, path: str) -> None:
    assert len(refused(client.get(path), 404, "not_found")) < 600


def test_all_views_give_what_the_model_gives(client: TestClient, predictor: Predictor) -> None:
    images = [encode(seed) for seed in (1, 2)]
    pixels = np.stack([predictor.prepare(image) for image in images])
    planes = pixels.transpose(0, 3, 1, 2).astype("<f4")
    expected = outputs_of(client.post("/infer", json={"inputs": [image_tensor(*images)]}))
    for view, values in (("pixels", pixels), ("tensor", planes)):
        datatype = "UINT8" if view == "pixels" else "FP32"
        tensor = {"name": view, "datatype": datatype, "shape": list(values.shape)}
        path = f"/views/{view}/v2/models/tiny/infer"
        raw = values.tobytes()
        binary = {**tensor, "parameters": {"binary_data_size": len(raw)}}
        for answer in (
            client.post(path, json={"inputs": [{**tensor, "data": values.tolist()}]}),
            client.post(path, json={"inputs": [{**tensor, "data": values.reshape(-1).tolist()}]}),
            post_binary(client, binary, raw, path=path),
            post_binary(client, binary, raw),
        ):
            got = outputs_of(answer)
            np.testing.assert_allclose(got["probabilities"], expected["probabilities"], atol=1e-6)
    image = client.post(
        "/views/image/v2/models/tiny/infer", json={"inputs": [image_tensor(*images)]}
    )
    assert list(outputs_of(image)) == ["probabilities"]


def test_a_bare_body_is_the_input_of_the_view(client: TestClient, predictor: Predictor) -> None:
    pixels = predictor.prepare(encode(1))
    planes = pixels.transpose(2, 0, 1).astype("<f4")
    bodies = {"image": encode(1), "pixels": pixels.tobytes(), "tensor": planes.tobytes()}
    found = []
    for view, body in bodies.items():
        path = f"/views/{view}/v2/models/tiny/infer"
        answer = client.post(path, content=body, headers={LENGTH_HEADER: "0"})
        found.append(outputs_of(answer)["probabilities"])
        refused(client.post(path, content=body[:99], headers={LENGTH_HEADER: "0"}), *SHORT[view])
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    np.testing.assert_allclose(found[0], found[2], atol=1e-6)


SHORT = {
    "image": (422, "image_decode"),
    "pixels": (400, "bad_request"),
    "tensor": (400, "bad_request"),
}


@pytest.mark.parametrize(
    ("view", "request_body", "told"),
    [
        ("pixels", {"inputs": [image_tensor(b"x")]}, "unknown input 'image'; expected pixels"),
        ("image", {"inputs": [image_tensor(b"x")], "outputs": [{"name": "label"}]}, "unknown outp"),
    ],
)
def test_a_view_knows_nothing_of_the_rest_of_the_model(
    client: TestClient, view: str, request_body: dict[str, Any], told: str
) -> None:
    answer = client.post(f"/views/{view}/v2/models/tiny/infer", json=request_body)
    assert told in refused(answer, 400, "bad_request")


# --- planes of floats ----------------------------------------------------------------------------


def planes_of(value: float) -> tuple[dict[str, Any], bytes]:
    raw = np.full((1, 3, SIZE, SIZE), value, "<f4").tobytes()
    parameters = {"binary_data_size": len(raw)}
    shape = [1, 3, SIZE, SIZE]
    return {"name": "tensor", "datatype": "FP32", "shape": shape, "parameters": parameters}, raw


@pytest.mark.parametrize(
    ("value", "pixel"), [(0, 0), (254.6, 255), (7.4, 7), (255, 255), (-0.0, 0)]
)
def test_floats_are_rounded_to_pixels(
    client: TestClient, predictor: Predictor, value: float, pixel: int
) -> None:
    got = outputs_of(post_binary(client, *planes_of(value)))
    image = np.full((1, SIZE, SIZE, 3), pixel, np.uint8)
    np.testing.assert_allclose(got["embedding"], predictor.predict(image).embedding, atol=1e-6)


@pytest.mark.parametrize("value", [-0.01, 255.01, np.nan, np.inf, -np.inf, 1e30])
def test_floats_that_are_no_pixels_are_refused(client: TestClient, value: float) -> None:
    assert "from 0 to 255" in refused(post_binary(client, *planes_of(value)), 400, "bad_request")


@pytest.mark.parametrize("value", ["7", None, True, [], {}, 1e300, 10**30, -1])
def test_json_values_that_are_no_pixels_are_refused(client: TestClient, value: object) -> None:
    data = [0] * (3 * SIZE * SIZE - 1) + [value]
    tensor = {"name": "tensor", "datatype": "FP32", "shape": [1, 3, SIZE, SIZE], "data": data}
    answer = client.post("/infer", json={"inputs": [tensor]})
    assert "from 0 to 255" in refused(answer, 400, "bad_request")


# --- a model without classes ---------------------------------------------------------------------


@pytest.fixture
def vectors(tmp_path: Path) -> Iterator[TestClient]:
    """A client of a model that gives vectors only."""
    bundle = tiny_bundle(tmp_path, kind="embedding")
    served = open_served(ServeOptions(bundle=bundle, threads=1))
    with TestClient(build_asgi(served), base_url=f"http://test{ROOT}", root_path=ROOT) as client:
        yield client
    served.close()


def test_the_main_output_of_a_model_without_classes_is_its_vector(vectors: TestClient) -> None:
    metadata = vectors.get("/views/image/v2/models/tiny").json()
    assert metadata["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [-1, 8]}]
    wanted = [{"name": "embedding", "parameters": {"classification": 1}}]
    request = {"inputs": [image_tensor(encode())], "outputs": wanted}
    answer = vectors.post("/views/image/v2/models/tiny/infer", json=request)
    assert "'classification' is for the output" in refused(answer, 400, "bad_request")
