"""Write the captured network as ONNX: uint8 NHWC in, the kind's outputs out, any batch size."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.export import ExportedProgram

OPSET = 20  # pinned: what OpenVINO 2026 and TensorRT 10 both read whole


def export_onnx(program: ExportedProgram, path: Path, *, outputs: Sequence[str]) -> None:
    """Write `program` to one self-contained file, its batch dimension still dynamic."""
    # The exporter prints its progress to standard output, which belongs to the caller's own
    # results.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["images"],
            output_names=list(outputs),
            opset_version=OPSET,
            external_data=False,
        )
    assert onnx_program is not None
    onnx_program.save(str(path), external_data=False)
