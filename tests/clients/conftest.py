"""Where the server is, and what is sent to it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc
import tritonclient.http
from PIL import Image

SIDE = 64  # of the tiny models' input


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


@pytest.fixture(scope="session")
def http_address() -> str:
    """Where HTTP is answered, without a scheme."""
    return os.environ["SIGHTLINE_HTTP"]


@pytest.fixture(scope="session")
def grpc_address() -> str:
    """Where gRPC is answered."""
    return os.environ["SIGHTLINE_GRPC"]


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


@pytest.fixture(scope="session")
def image_file() -> Callable[[int], bytes]:
    """Make an image file of smooth noise, different for each seed, of no model's size."""

    def make(seed: int) -> bytes:
        coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((96, 80)).save(buffer, "PNG")
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def pixels() -> npt.NDArray[np.uint8]:
    """Two images at the models' own size, (2, H, W, 3)."""
    return np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
