"""What the network itself says of a few images, and whether a peer's answer is that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.bundle import open_bundle
from models.predictor import open_predictor

NUM_CHECKED = 3


class PeerFailure(Exception):
    """A peer cannot be measured; the message is the reason."""


@dataclass(frozen=True)
class Reference:
    """What the network says of a few images, through Sightline's own predictor."""

    images: tuple[Path, ...]
    probabilities: tuple[tuple[float, ...], ...]
    precision: str  # in which it was computed, and in which `same` is served


def open_reference(bundle: str, images: Path) -> Reference:
    """Score the first images of a folder in this process."""
    files = tuple(sorted(images.iterdir())[:NUM_CHECKED])
    predictor = open_predictor(open_bundle(bundle))
    try:
        pixels = np.stack([predictor.prepare(file.read_bytes()) for file in files])
        found = predictor.predict(pixels).probabilities
    finally:
        predictor.close()
    if found is None:
        raise PeerFailure(f"{bundle} has no classes; peers are measured with a classifier")
    rows = tuple(tuple(float(value) for value in row) for row in found)
    return Reference(files, rows, predictor.engine.precision)


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
