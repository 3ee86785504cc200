"""`embed`, and a model that has nothing but vectors."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import numpy as np
import pytest
from starlette.testclient import TestClient

from models.bundle import open_bundle
from models.predictor import Predictor, open_predictor
from serve_app.asgi import build_asgi
from serve_app.config import ServeOptions
from serve_app.model import ServedModel
from tests.bundles import tiny_bundle
from tests.serve_app.conftest import ROOT, SIZE, encode, refused

BYTES = {"Accept": "application/octet-stream"}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_vector_is_what_the_predictor_says(client: TestClient, predictor: Predictor) -> None:
    image = encode(5)
    answer = client.post("/embed", content=image).json()
    expected = predictor.predict(predictor.prepare(image)[None]).embedding[0]
    assert answer["embedding"] == pytest.approx(expected.tolist(), abs=1e-6)
    assert answer["model"] == "tiny"


def test_bytes_hold_the_same_vectors_as_json(client: TestClient) -> None:
    images = {"images": [b64(encode(seed)) for seed in range(3)]}
    listed = [entry["embedding"] for entry in client.post("/embed", json=images).json()["results"]]
    answer = client.post("/embed", json=images, headers=BYTES)
    shape = tuple(map(int, answer.headers["sightline-shape"].split(",")))
    vectors = np.frombuffer(answer.content, "<f4").reshape(shape)
    np.testing.assert_allclose(vectors, np.array(listed), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_bad_image_has_its_error_between_vectors(client: TestClient) -> None:
    answer = client.post("/embed", json={"images": [b64(encode()), b64(b"no")]}).json()
    assert "embedding" in answer["results"][0]
    assert answer["results"][1]["code"] == "image_type"


def test_bytes_have_no_room_for_an_error_so_the_request_fails(client: TestClient) -> None:
    images = {"images": [b64(encode()), b64(encode()[:200])]}
    assert refused(
        client.post("/embed", json=images, headers=BYTES), 422, "image_decode"
    ).startswith("image 1: ")


def test_embed_takes_no_query_parameters(client: TestClient) -> None:
    refused(client.post("/embed?top_k=2", content=encode()), 400, "bad_parameter")


@pytest.fixture(scope="module")
def vectors_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A model of the kind that has no classes."""
    uri = tiny_bundle(tmp_path_factory.mktemp("models"), kind="embedding", size=SIZE)
    options = ServeOptions(bundle=uri)
    bundle = open_bundle(uri, tmp_path_factory.mktemp("cache"))
    model = ServedModel(open_predictor(bundle, options.engine_options), options)
    with TestClient(build_asgi(model), base_url=f"http://test{ROOT}", root_path=ROOT) as client:
        yield client
    model.close()


def test_a_model_without_classes_has_no_classify(vectors_only: TestClient) -> None:
    refused(vectors_only.post("/classify", content=encode()), 404, "not_found")
    assert vectors_only.post("/embed", content=encode()).status_code == 200


def test_a_model_without_classes_offers_its_vectors_as_a_tensor(vectors_only: TestClient) -> None:
    assert [t["name"] for t in vectors_only.get("").json()["outputs"]] == ["embedding"]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [b64(encode())]}
    (output,) = vectors_only.post("/infer", json={"inputs": [tensor]}).json()["outputs"]
    assert output["name"] == "embedding"
    assert np.linalg.norm(output["data"]) == pytest.approx(1, abs=1e-5)
