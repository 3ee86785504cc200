"""What the network itself says of a few images, and whether a peer's answer is that."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.peers.scoring import torchvision_transform
from models.bundle import Bundle, open_bundle
from models.engines.base import EngineOptions
from models.engines.openvino_engine import open_engine
from models.predictor import open_predictor

NUM_CHECKED = 3

Rows = tuple[tuple[float, ...], ...]  # of each image, the probability of each class


class PeerFailure(Exception):
    """A peer cannot be measured; the message is the reason."""


@dataclass(frozen=True)
class Reference:
    """What the network says of a few images, by `same` and `own`: of the same photo, Pillow and
    torchvision make other pixels than Sightline, of which a network may think otherwise.
    """

    images: tuple[Path, ...]
    probabilities: dict[str, Rows]  # without `own` where torchvision cannot prepare as the bundle
    precision: str  # in which `same` was computed, and is served; `own` is in float32


def open_reference(bundle: str, images: Path) -> Reference:
    """Score the first images of a folder in this process, with Sightline's engine."""
    opened = open_bundle(bundle)
    files = tuple(sorted(images.iterdir())[:NUM_CHECKED])
    predictor = open_predictor(opened)
    try:
        pixels = np.stack([predictor.prepare(file.read_bytes()) for file in files])
        found = predictor.predict(pixels).probabilities
    finally:
        predictor.close()
    if found is None:
        raise PeerFailure(f"{bundle} has no classes; peers are measured with a classifier")
    probabilities = {"same": _rows(found)}
    with contextlib.suppress(ValueError):  # a peer that is started in that way says so itself
        probabilities["own"] = _rows(_score_own(opened, files))
    return Reference(files, probabilities, predictor.engine.precision)


def _score_own(bundle: Bundle, files: Sequence[Path]) -> np.ndarray[Any, Any]:
    transform = torchvision_transform(bundle.manifest.preprocess)
    engine = open_engine(bundle, "fp32", EngineOptions(threads=1))
    try:
        rows = []
        for file in files:
            with Image.open(file) as image:
                pixels = transform(image).numpy()
            rows.append(engine.run(np.ascontiguousarray(pixels)[None])["probabilities"][0])
    finally:
        engine.close()
    return np.stack(rows)


def _rows(found: np.ndarray[Any, Any]) -> Rows:
    return tuple(tuple(float(value) for value in row) for row in found)


def compare(got: Sequence[float], expected: Sequence[float], tolerance: float, image: str) -> None:
    """Raise `PeerFailure` if an answer is not the network's."""
    if len(got) != len(expected):
        raise PeerFailure(f"{image}: {len(got)} probabilities, expected {len(expected)}")
    difference = max(abs(a - b) for a, b in zip(got, expected, strict=True))
    if not difference <= tolerance:
        raise PeerFailure(
            f"{image}: a probability differs by {difference:.4f} from the network's, more than "
            f"{tolerance}: it does not serve the same"
        )
    top = sorted(expected)[-2:]
    is_decided = top[-1] - top[0] > 2 * tolerance
    if is_decided and int(np.argmax(got)) != int(np.argmax(expected)):
        raise PeerFailure(f"{image}: another label than the network's")
