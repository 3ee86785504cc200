"""A tiny real model behind the real HTTP application, without Serve."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from models.bundle import open_bundle
from models.predictor import Predictor, open_predictor
from serve_app.asgi import build_asgi
from serve_app.config import Limits, ServeOptions
from serve_app.model import ServedModel
from tests.bundles import tiny_bundle

ROOT = "/v2/models/tiny"  # where Serve mounts the application
SIZE = 64


class Response(Protocol):
    """What tests read of an answer, whichever HTTP library the client is made of."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Any: ...
    @property
    def content(self) -> bytes: ...
    @property
    def text(self) -> str: ...
    def json(self) -> Any: ...


def refused(answer: Response, status: int, code: str) -> str:
    """Assert the error form and return its sentence."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error", "code"}
    assert body["code"] == code
    return str(body["error"])


def encode(seed: int = 0, size: tuple[int, int] = (96, 80), kind: str = "JPEG") -> bytes:
    """Return an image file of smooth noise, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def bundle_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A published bundle of kind generic."""
    return tiny_bundle(tmp_path_factory.mktemp("models"), size=SIZE)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where artifacts are cached."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def options(bundle_uri: str) -> ServeOptions:
    """Small limits, so that tests reach them."""
    limits = Limits(
        max_body_bytes=400_000, max_image_bytes=200_000, max_pixels=1_000_000, max_images=4
    )
    return ServeOptions(bundle=bundle_uri, limits=limits, threads=1)


@pytest.fixture(scope="session")
def predictor(options: ServeOptions, cache: Path) -> Predictor:
    """The tiny model on the engine that is the default."""
    return open_predictor(open_bundle(options.bundle, cache), options.engine_options)


@pytest.fixture(scope="session")
def model(predictor: Predictor, options: ServeOptions) -> Iterator[ServedModel]:
    """The tiny model as a replica holds it."""
    served = ServedModel(predictor, options)
    yield served
    served.close()


@pytest.fixture
def client(model: ServedModel) -> Iterator[TestClient]:
    """A client whose paths begin where the model is mounted, as behind Serve."""
    with TestClient(build_asgi(model), base_url=f"http://test{ROOT}", root_path=ROOT) as client:
        yield client
