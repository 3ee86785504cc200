"""What a model said of images whose truth is known: kept in the bundle, so that a new label map can
be tried on them without an image or an engine.

`validation.npz` holds the probabilities of every output (N, C), as float16, the position of the
true output of each image (N,), and the split they come from.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.bundle import Bundle
from models.errors import BundleError

VALIDATION = "validation.npz"
MAX_IMAGES = 20_000  # 40 MB at 1,000 classes; shares are known to half a percent by then


@dataclass(frozen=True)
class ValidationOutputs:
    """N images that the model was not trained on."""

    split: str
    probabilities: npt.NDArray[np.float32]  # (N, C), rows sum to 1
    truth: npt.NDArray[np.intp]  # (N,), positions among the outputs


def dump_outputs(outputs: ValidationOutputs) -> bytes:
    """Return the file's content; of more than `MAX_IMAGES` images, that many at even distances."""
    count = len(outputs.truth)
    kept = np.unique(np.linspace(0, count - 1, min(count, MAX_IMAGES)).astype(np.intp))
    file = io.BytesIO()
    np.savez_compressed(
        file,
        split=np.array(outputs.split),
        probabilities=outputs.probabilities[kept].astype(np.float16),
        truth=outputs.truth[kept].astype(np.int32),
    )
    return file.getvalue()


def load_outputs(bundle: Bundle) -> ValidationOutputs | None:
    """Return what a bundle keeps, or None for one that keeps nothing.

    Raises `BundleError` for a file that cannot be read or is not of this model.
    """
    manifest = bundle.manifest
    if all(artifact.path != VALIDATION for artifact in manifest.artifacts):
        return None
    try:
        with np.load(bundle.path(VALIDATION), allow_pickle=False) as stored:
            outputs = ValidationOutputs(
                str(stored["split"]),
                stored["probabilities"].astype(np.float32),
                stored["truth"].astype(np.intp),
            )
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise BundleError(f"{manifest.label}: {VALIDATION} cannot be read ({error})") from error
    num_classes, truth = len(manifest.classes), outputs.truth
    if outputs.probabilities.shape != (len(truth), num_classes) or (
        len(truth) and not (truth.min() >= 0 and truth.max() < num_classes)
    ):
        raise BundleError(
            f"{manifest.label}: {VALIDATION} has probabilities of shape "
            f"{outputs.probabilities.shape} for {len(truth)} images and {num_classes} classes"
        )
    return outputs
