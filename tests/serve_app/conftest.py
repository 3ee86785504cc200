"""A tiny real model behind the real HTTP application, without Serve and with it."""

from __future__ import annotations

import importlib
import io
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image
from starlette.testclient import TestClient

from cluster.environment import free_port
from cluster.session import Session
from models.bundle import open_bundle
from models.predictor import Predictor, open_predictor
from serve_app.asgi import build_asgi
from serve_app.config import Limits, ServeOptions
from serve_app.model import ServedModel
from tests.bundles import tiny_bundle
from tests.serve_app.grpc_ready import wait_until_routed

ROOT = "/v2/models/tiny"  # where Serve mounts the application
SIZE = 64
CONFIG = Path(__file__).parents[2] / "configs" / "serve" / "local.yaml"
SECONDS_TO_START = 120


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


@dataclass(frozen=True)
class Server:
    """Where the applications of the serve file answer."""

    url: str
    address: str  # without the scheme, as tritonclient wants it
    grpc_address: str
    home: Path  # the folder that a user would be in: `.sightline` with models and labels
    seconds_to_ready: float  # from its deployment on


@pytest.fixture(scope="session")
def server(ray_session: Session, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`serve deploy configs/serve/local.yaml`, with a tiny model in the place of the demo's."""
    from ray import serve

    config = yaml.safe_load(CONFIG.read_text())
    home = tmp_path_factory.mktemp("home")
    models, labels = home / ".sightline" / "models", home / ".sightline" / "labels"
    port, grpc_port = free_port(), free_port()
    config["http_options"]["port"] = port
    config["grpc_options"]["port"] = grpc_port
    config["applications"][1]["args"] = {
        "bundle": tiny_bundle(models, name="elpv", kind="dynamic"),
        "label_store": str(labels),
        "replicas": 1,
    }
    (home / "serve.yaml").write_text(yaml.safe_dump(config))
    command = [str(Path(sys.executable).with_name("serve")), "deploy", str(home / "serve.yaml")]
    began, address = time.monotonic(), f"127.0.0.1:{port}"
    subprocess.run([*command, "--address", ray_session.dashboard_url], check=True, timeout=120)
    _wait_until_ready(f"http://{address}")
    seconds = time.monotonic() - began
    server = Server(f"http://{address}", address, f"127.0.0.1:{grpc_port}", home, seconds)
    wait_until_routed(server.grpc_address, ["elpv", "catalog"])
    yield server
    serve.shutdown()


def run_application(
    server: Server, application: dict[str, Any], args: dict[str, Any], *, path: str = "/ready"
) -> None:
    """Deploy one more application, as an entry of a serve file says, and wait until it answers
    below its route: HAProxy may learn of it seconds after it runs, and the catalog answers so long.
    """
    from ray import serve

    module, name = application["import_path"].split(":")
    build = getattr(importlib.import_module(module), name)
    serve.run(build(args), name=application["name"], route_prefix=application["route_prefix"])
    url = f"{server.url}{application['route_prefix']}{path}"
    deadline = time.monotonic() + SECONDS_TO_START
    while httpx.get(url, timeout=SECONDS_TO_START).status_code != 200:
        assert time.monotonic() < deadline, f"{application['name']} is not routed to"
        time.sleep(0.2)


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            answer = httpx.post(f"{url}/v2/repository/index", json={"ready": True}, timeout=5)
            if answer.status_code == 200 and [entry["name"] for entry in answer.json()] == ["elpv"]:
                return
        except httpx.TransportError:  # HAProxy is not up yet
            pass
        assert time.monotonic() < deadline, "the model does not become ready"
        time.sleep(0.3)
