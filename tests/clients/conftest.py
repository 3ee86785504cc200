"""Where the server is, and what is sent to it. Knows none of the clients: not all of them can be
loaded into one process.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

SIDE = 64  # of the tiny models' input


@pytest.fixture(scope="session")
def http_address() -> str:
    """Where HTTP is answered, without a scheme."""
    return os.environ["SIGHTLINE_HTTP"]


@pytest.fixture(scope="session")
def grpc_address() -> str:
    """Where gRPC is answered."""
    return os.environ["SIGHTLINE_GRPC"]


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
