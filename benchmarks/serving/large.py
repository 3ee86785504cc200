"""A photo of 12 megapixels: Sightline's scoring against decoding in full and then resizing."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from models.bundle import open_bundle
from models.engines.base import EngineOptions
from models.predictor import open_predictor
from models.preprocess import PreprocessSpec, prepare, resize

OURS = "decode at a fraction, resize"
FULL = "decode in full, resize (libjpeg-turbo, OpenCV)"
PILLOW = "decode in full, resize (Pillow)"
SCORING = "all of scoring it"
NUM_RUNS = 9


def measure_large(bundle_uri: str, photo: Path) -> dict[str, float]:
    """Return the milliseconds on one core of each way, medians of interleaved runs."""
    bundle = open_bundle(bundle_uri)
    data, spec = photo.read_bytes(), bundle.manifest.preprocess
    predictor = open_predictor(bundle, EngineOptions(threads=1))

    def score() -> None:
        predictor.predict(predictor.prepare(data)[None])

    ways: dict[str, Callable[[], object]] = {
        OURS: lambda: prepare(data, spec),
        FULL: lambda: resize(_decoded(data), spec),
        PILLOW: lambda: _pillow(data, spec),
        SCORING: score,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    try:
        for run in range(NUM_RUNS + 1):
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                if run:  # the first is the warm-up
                    times[name].append(time.perf_counter() - started)
    finally:
        predictor.close()
    return {name: statistics.median(of_one) * 1e3 for name, of_one in times.items()}


def _decoded(data: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    import simplejpeg

    pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = simplejpeg.decode_jpeg(data, "RGB")
    return pixels


def _pillow(data: bytes, spec: PreprocessSpec) -> None:
    """As torchvision's transforms do it: the shorter side to what the crop is cut from."""
    from PIL import Image

    from benchmarks.peers.scoring import torchvision_transform

    torchvision_transform(spec)(Image.open(io.BytesIO(data)).convert("RGB"))
