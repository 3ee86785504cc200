"""What an answer depends on: parts of the image are hidden one after the other, and where the
answer loses most, it depended most (occlusion, Zeiler and Fergus 2014, arXiv 1311.2901).

A bundle holds no gradients, so this asks an engine that serves. A coarse map: it tells the part
from the background, not one edge from the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from models.predictor import Predictor

Image = npt.NDArray[np.uint8]
# Of the probability, so that its log-odds stay finite; a bf16 soft-max knows no more.
EDGE = 1e-4
STRONGEST = 0.65  # how far the warmest spot hides the image


@dataclass(frozen=True)
class Saliency:
    """How much each cell (G, G) of an image holds of its answer, 0 to 1; and the probability of the
    answer, whole and with its weightiest cell hidden.
    """

    heat: npt.NDArray[np.float64]
    probability: float
    lowest: float


def occlude(
    predictor: Predictor, image: Image, owners: npt.NDArray[np.intp], answer: int, cells: int
) -> Saliency:
    """Hide each of `cells` x `cells` parts of a prepared image (H, W, 3) under its mean colour and
    ask again. `owners` gives each output of the model its label (C,), `answer` is a label.
    """
    height, width, _ = image.shape
    rows = np.linspace(0, height, cells + 1).astype(int)
    columns = np.linspace(0, width, cells + 1).astype(int)
    grey = image.mean(axis=(0, 1)).round().astype(np.uint8)
    hidden = np.repeat(image[None], cells * cells + 1, axis=0)
    for place in range(cells * cells):
        row, column = divmod(place, cells)
        # Half a cell more on every side: what lies on a border is hidden, too.
        top, bottom = _wider(rows[row], rows[row + 1], height)
        left, right = _wider(columns[column], columns[column + 1], width)
        hidden[place + 1, top:bottom, left:right] = grey
    probabilities = predictor.predict(hidden).probabilities
    assert probabilities is not None  # `collect` has refused models without classes
    mine = probabilities[:, owners == answer].sum(axis=1).astype(np.float64)
    odds = np.log(np.clip(mine, EDGE, 1 - EDGE)) - np.log(np.clip(1 - mine, EDGE, 1 - EDGE))
    drop = np.maximum(odds[0] - odds[1:], 0).reshape(cells, cells)
    heat = drop / drop.max() if drop.max() > 0 else drop
    return Saliency(heat, float(mine[0]), float(mine[1:].min()))


def overlay(image: Image, heat: npt.NDArray[np.float64]) -> Image:
    """Return an image (H, W, 3) in grey with its warm cells in yellow to red."""
    height, width, _ = image.shape
    smooth = cv2.resize(heat, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)[..., None]
    grey = (image @ np.array([0.299, 0.587, 0.114]))[..., None]
    warm = np.concatenate([np.full_like(smooth, 255), 220 * (1 - smooth), 30 * (1 - smooth)], -1)
    weight = STRONGEST * smooth
    mixed: Image = (grey * (1 - weight) + warm * weight).round().astype(np.uint8)
    return mixed


def _wider(start: int, end: int, length: int) -> tuple[int, int]:
    more = (end - start) // 4
    return max(0, start - more), min(length, end + more)
