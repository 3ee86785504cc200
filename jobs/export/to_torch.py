"""Write the served network as a `.pt2` file: the graph as JSON, the weights as raw tensors, no
pickle.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import nn

from jobs.export.to_onnx import MAX_BATCH, example_images
from models.errors import BundleError


def export_torch(model: nn.Module, path: Path, *, height: int, width: int) -> None:
    """Export `model` in eval mode with a dynamic batch dimension.

    Raises `BundleError` if the archive would hold a pickle.
    """
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    program = torch.export.export(
        model.eval(), (example_images(height, width),), dynamic_shapes=({0: batch},)
    )
    # Example inputs are the one part that torch would store as a pickle, and nobody needs them.
    program.example_inputs = None
    torch.export.save(program, path)
    pickles = find_pickles(path)
    if pickles:
        raise BundleError(
            f"{path.name} holds pickles, which a bundle must not: {', '.join(pickles)}"
        )


def find_pickles(path: Path) -> list[str]:
    """Return the members of an archive that begin like a pickle or are one inside another
    archive.
    """
    found = []
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                head = file.read(4)
            is_pickle = member.filename.endswith((".pkl", "data.pkl")) or head[:2] == b"\x80\x02"
            if is_pickle or head == b"PK\x03\x04":
                found.append(member.filename)
    return found
