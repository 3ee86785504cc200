"""Capture the served network as a graph, and write it as a `.pt2` file: the graph as JSON, the
weights as raw tensors, no pickle.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from models.engines.pt2_archive import check_archive

MAX_BATCH = 1024


def capture(model: nn.Module, *, height: int, width: int) -> ExportedProgram:
    """Return the graph of `model` in eval mode for images uint8 (N, H, W, 3) with N from 1 to
    `MAX_BATCH`.

    Every portable artifact is written from this one graph, so that they cannot differ.
    """
    # Two images: a batch of one would be baked into the graph as a constant.
    images = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    return torch.export.export(model.eval(), (images,), dynamic_shapes=({0: batch},))


def export_torch(program: ExportedProgram, path: Path) -> None:
    """Write `program` with its batch dimension still dynamic.

    Raises `BundleError` if the archive would hold what no engine of ours loads.
    """
    # Example inputs are the one part that torch would store as a pickle, and nobody needs them.
    program.example_inputs = None
    torch.export.save(program, path)
    check_archive(path)
