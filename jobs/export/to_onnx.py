"""Write the served network as ONNX: uint8 NHWC in, the kind's outputs out, any batch size."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

OPSET = 20  # pinned: what OpenVINO 2026 and TensorRT 10 both read whole
MAX_BATCH = 1024


def example_images(height: int, width: int) -> torch.Tensor:
    """Return a batch for tracing. Two images: a batch of one would be baked into the graph as a
    constant.
    """
    return torch.zeros(2, height, width, 3, dtype=torch.uint8)


def export_onnx(
    model: nn.Module, path: Path, *, height: int, width: int, outputs: Sequence[str]
) -> None:
    """Export `model` in eval mode to one self-contained file with a dynamic batch dimension."""
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    # The exporter prints its progress to standard output, which belongs to the caller's own
    # results.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model.eval(),
            (example_images(height, width),),
            dynamo=True,
            dynamic_shapes=({0: batch},),
            input_names=["images"],
            output_names=list(outputs),
            opset_version=OPSET,
            external_data=False,
        )
    assert program is not None
    program.save(str(path), external_data=False)
