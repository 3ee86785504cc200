"""What is exported does what was trained, or is not published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jobs.export.exporter import Draft, Provenance, export_draft
from jobs.export.to_torch import find_pickles
from jobs.train.network import ServedNetwork, build_network
from models.errors import ProofError
from models.preprocess import PreprocessSpec


def export(model: nn.Module, folder: Path, size: int = 64) -> Draft:
    """Export a two-class model."""
    images = np.random.default_rng(0).integers(0, 256, (5, size, size, 3), dtype=np.uint8)
    return export_draft(
        model,
        folder,
        name="part",
        kind="generic",
        classes=("good", "defective"),
        preprocess=PreprocessSpec(height=size, width=size),
        reference_images=images,
        provenance=Provenance("run", "config", "code"),
    )


@pytest.mark.slow
def test_a_real_backbone_is_exported_and_proven_by_every_engine(tmp_path: Path) -> None:
    draft = export(ServedNetwork(build_network("mobilenetv3_small_050", 2)), tmp_path)
    assert {(p.engine, p.precision) for p in draft.parities} >= {
        ("openvino", "fp32"),
        ("torch", "fp32"),
    }
    for parity in draft.parities:
        if parity.precision == "fp32":
            assert parity.proof is not None
            assert parity.proof.largest_probability_difference < 1e-3
    assert draft.manifest.outputs.embedding == 1024


def test_a_torch_file_of_a_bundle_holds_no_pickle(model_store: Path, tmp_path: Path) -> None:
    assert find_pickles(model_store / "tiny" / "1" / "model.pt2") == []
    torch.save({"a": torch.ones(2)}, tmp_path / "pickled.pt")
    assert find_pickles(tmp_path / "pickled.pt") != []


class Unsteady(nn.Module):
    """Says something else when traced than when run: what a broken export looks like."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and embeddings."""
        features = images.float().mean(dim=(1, 2)) / 255
        if type(images) is not Tensor:  # a stand-in, which only tracing passes
            features = -features
        unit = nn.functional.normalize(features, dim=1)
        return torch.softmax(self.head(features) * 30, dim=1), unit


def test_an_artifact_that_differs_from_the_network_stops_the_export(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(ProofError, match="not published"):
        export(Unsteady(), tmp_path)
