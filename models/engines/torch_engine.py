"""PyTorch from the bundle's `.pt2` (torch.export): the reference everywhere, and the GPU without
TensorRT.

The file holds the graph as JSON and the weights as raw tensors; no Python of the bundle's author is
run, since `pt2_archive` refuses what could hold any. On a GPU bfloat16 comes by autocast, so the
one file serves both precisions.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.bundle import Bundle
from models.engines.base import EngineOptions, Feeding, Images, Outputs, engine_artifact
from models.engines.pt2_archive import check_archive
from models.errors import BundleError, EngineError
from models.kinds import find_kind
from models.stopwatch import part

MAX_BATCH = {"cpu": 16, "cuda": 64}


class TorchEngine:
    """An exported program on one device. Calls take turns: torch itself uses all threads for
    one.
    """

    name = "torch"

    def __init__(
        self, program: Any, names: Sequence[str], precision: str, device: str, num_threads: int
    ) -> None:
        self.precision = precision
        self.device = device
        self.feeding = Feeding("batches", parallel=1, max_batch=MAX_BATCH[device])
        self._program = program
        self._names = names
        self._num_threads = num_threads
        self._turn = threading.Lock()

    def run(self, images: Images) -> Outputs:
        """Run uint8 images (N, H, W, 3). Raises `EngineError` if the device fails."""
        import torch

        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        half = self.precision != "fp32"
        # The reader's pixels may be read-only memory (Arrow, a socket); torch warns unless it owns
        # a writable copy.
        pixels = images if images.flags.writeable else images.copy()
        autocast = torch.autocast(self.device, dtype, enabled=half)
        try:
            with self._turn, torch.inference_mode(), autocast:
                if self.device == "cpu" and torch.get_num_threads() != self._num_threads:
                    torch.set_num_threads(self._num_threads)
                batch = torch.from_numpy(pixels).to(self.device, non_blocking=True)
                results = self._program(batch)
                values = results if isinstance(results, (tuple, list)) else (results,)
                arrays = [value.float().cpu().numpy() for value in values]
        except RuntimeError as error:  # out of memory and failed devices, by many names
            raise EngineError(f"torch failed on {self.device}: {error}") from error
        return {
            name: np.ascontiguousarray(array)
            for name, array in zip(self._names, arrays, strict=True)
        }

    def close(self) -> None:
        """Free the weights."""
        self._program = None


def precisions(options: EngineOptions) -> Sequence[str]:
    """Return bf16 and fp32 on a GPU, fp32 on a CPU (where autocast is slower than oneDNN in
    fp32).
    """
    if options.precision != "auto":
        return (options.precision,)
    return ("bf16", "fp32") if options.device == "cuda" else ("fp32",)


def open_engine(bundle: Bundle, precision: str, options: EngineOptions) -> TorchEngine:
    """Load the bundle's `.pt2` file."""
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise EngineError(
            "the torch engine was asked for cuda, but torch finds no CUDA device here"
        )
    if precision not in ("fp32", "bf16", "fp16"):
        raise EngineError(
            f"the torch engine has no precision {precision!r}; use fp32, bf16 or fp16"
        )
    path = bundle.path(engine_artifact(bundle, "torch"))
    try:
        with part("read"):
            check_archive(path)
            program = torch.export.load(path).module().to(options.device)
    except BundleError as error:
        raise EngineError(str(error)) from error
    except (
        Exception
    ) as error:  # the archive reader raises many types, and all mean that the file does not fit
        raise EngineError(f"torch cannot load {path.name}: {error}") from error

    names = find_kind(bundle.manifest.kind).outputs
    return TorchEngine(program, names, precision, options.device, options.num_threads)
