"""Photos of two classes, dark and light, for tests that train or tune."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from models.storage import Store


def photo(seed: int, light: bool) -> bytes:
    """Return a noisy JPEG, dark or light."""
    noise = np.random.default_rng(seed).integers(0, 130, (48, 40, 3))
    buffer = io.BytesIO()
    Image.fromarray((noise + 110 * light).astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_photos(store: Store, count: int = 60) -> None:
    """Write photos of two classes, and three files that are none."""
    for i in range(count):
        for label in ("dark", "light"):
            store.write(f"{label}/{i:03}.jpg", photo(2 * i + (label == "light"), label == "light"))
    store.write("dark/text.jpg", b"not an image")
    store.write("dark/empty.jpg", b"")
    store.write("light/cut.jpg", photo(999, True)[:400])
