"""Make a draft bundle of a trained network: artifacts, reference and manifest in a local folder,
proven.

Nothing is published here. `finish` adds figures and documents; `models.bundle.publish` then makes a
version of it.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from jobs.export.parity import Parity, check_parity, write_reference
from jobs.export.to_onnx import export_onnx
from jobs.export.to_torch import capture, export_torch
from models.bundle import Bundle, describe_file
from models.kinds import find_kind
from models.labels import OutputClass
from models.manifest import Artifact, Manifest, Outputs, Tolerance
from models.predictor import REFERENCE
from models.preprocess import PreprocessSpec

ONNX = "model.onnx"
TORCH = "model.pt2"


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from."""

    run_id: str
    config_digest: str
    code_revision: str


@dataclass(frozen=True)
class Draft:
    """A bundle that is not published yet, and how its artifacts compared with the network."""

    folder: Path
    manifest: Manifest
    parities: tuple[Parity, ...] = ()

    @property
    def bundle(self) -> Bundle:
        """The draft, to be opened like any bundle."""
        return Bundle(str(self.folder.absolute()), self.manifest, self.folder / ".cache")


def export_draft(
    model: nn.Module,
    folder: Path,
    *,
    name: str,
    kind: str,
    classes: Sequence[str],
    preprocess: PreprocessSpec,
    reference_images: npt.NDArray[np.uint8],
    provenance: Provenance,
    tolerance: Tolerance | None = None,
    temperature: float = 1.0,
) -> Draft:
    """Export `model` (uint8 images (N, H, W, 3) to the kind's outputs) to every portable format,
    and prove each. `temperature` is what the model divides its logits by, for the manifest.

    Raises `ProofError` if an artifact does not reproduce the model on the reference images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = model.cpu().eval()
    outputs = find_kind(kind).outputs
    program = capture(model, height=preprocess.height, width=preprocess.width)
    export_onnx(program, folder / ONNX, outputs=outputs)
    export_torch(program, folder / TORCH)
    write_reference(model, reference_images, folder, kind)
    artifacts = (
        describe_file(folder / ONNX, engine="openvino", precision="fp32"),
        describe_file(folder / TORCH, engine="torch", precision="fp32"),
        describe_file(folder / REFERENCE),
    )
    manifest = Manifest(
        name=name,
        version=1,  # the store assigns the real one
        kind=kind,
        created=datetime.now(UTC),
        run_id=provenance.run_id,
        code_revision=provenance.code_revision,
        config_digest=provenance.config_digest,
        preprocess=preprocess,
        outputs=_widths(model, preprocess, len(classes)),
        classes=tuple(OutputClass(id=label, name=label) for label in classes),
        temperature=temperature,
        tolerance=tolerance or Tolerance(),
        artifacts=artifacts,
    )
    draft = Draft(folder, manifest)
    return replace(draft, parities=tuple(check_parity(draft.bundle)))


def finish(draft: Draft, metrics: Mapping[str, float], documents: Sequence[Path]) -> Draft:
    """Return the draft with more figures and documents (files in the draft's folder) in the
    manifest.
    """
    extra: tuple[Artifact, ...] = tuple(describe_file(path) for path in documents)
    manifest = draft.manifest.model_copy(
        update={
            "metrics": {**draft.manifest.metrics, **metrics},
            "artifacts": draft.manifest.artifacts + extra,
        }
    )
    return replace(draft, manifest=manifest)


def digest_of(text: str) -> str:
    """Return a short digest of a configuration."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_revision(folder: Path) -> str:
    """Return the git revision of the code, with `+changes` if it is not committed, or `unknown`."""
    try:
        revision = _git(folder, "rev-parse", "--short=12", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision + ("+changes" if changes else "")


def _git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def _widths(model: nn.Module, preprocess: PreprocessSpec, num_classes: int) -> Outputs:
    image = torch.zeros(1, preprocess.height, preprocess.width, 3, dtype=torch.uint8)
    with torch.inference_mode():
        result = model(image)
    embedding = result[-1] if isinstance(result, tuple) else result
    return Outputs(probabilities=num_classes, embedding=int(embedding.shape[-1]))
