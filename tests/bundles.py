"""Small real bundles for tests: a tiny network, really exported, proven and published."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.export.exporter import Provenance, export_draft
from models.bundle import publish
from models.preprocess import PreprocessSpec

NUM_FEATURES = 8


class TinyNet(nn.Module):
    """Mean colour and contrast of a grid of patches, mixed by fixed random weights; no training
    needed.
    """

    def __init__(self, kind: str, num_classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.kind = kind
        self.mix = nn.Conv2d(3, NUM_FEATURES, 4, stride=4)
        self.head = nn.Linear(NUM_FEATURES, max(1, num_classes))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        """Return the outputs of the kind for uint8 images (N, H, W, 3)."""
        pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        features = torch.tanh(self.mix(pixels)).mean(dim=(2, 3))
        embedding = functional.normalize(features, dim=1)
        if self.kind == "embedding":
            return embedding
        return functional.softmax(self.head(features), dim=1), embedding


def tiny_bundle(
    store: Path | str,
    *,
    kind: str = "generic",
    classes: Sequence[str] = ("good", "defective"),
    size: int = 64,
    name: str = "tiny",
) -> str:
    """Publish a bundle of a tiny network to a model store and return its URI."""
    names = () if kind == "embedding" else tuple(classes)
    images = np.random.default_rng(3).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        draft = export_draft(
            TinyNet(kind, len(names)),
            Path(folder),
            name=name,
            kind=kind,
            classes=names,
            preprocess=PreprocessSpec(height=size, width=size, resize="stretch"),
            reference_images=images,
            provenance=Provenance("test", "test", "test"),
        )
        return publish(store, draft.manifest, draft.folder).uri
