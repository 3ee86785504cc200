"""Prove every artifact of a draft against the trained network, on real images, before it is
published.

The reference outputs come from the network itself, in fp32 torch. Then the draft is opened exactly
as a replica would open it, and every engine that can run here has to reproduce them: in fp32 for
certain, and in every precision that a replica here would try.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from cluster.environment import usable_cores
from models.bundle import Bundle
from models.engines.base import ENGINES, EngineOptions, find_engine
from models.errors import EngineError, ProofError
from models.kinds import find_kind
from models.predictor import REFERENCE, Proof, prove

REFERENCE_BATCH = 8


@dataclass(frozen=True)
class Parity:
    """How one engine and precision compared. `refusal` says why it cannot serve, if it cannot."""

    engine: str
    precision: str
    proof: Proof | None
    refusal: str = ""


def write_reference(
    model: nn.Module, images: npt.NDArray[np.uint8], folder: Path, kind: str
) -> None:
    """Store images (N, H, W, 3) and what the network, in fp32 torch on the CPU, says of them."""
    outputs: list[tuple[torch.Tensor, ...]] = []
    with torch.inference_mode():
        for start in range(0, len(images), REFERENCE_BATCH):
            batch = torch.from_numpy(images[start : start + REFERENCE_BATCH].copy())
            result = model(batch)
            outputs.append(result if isinstance(result, tuple) else (result,))
    arrays = {
        name: torch.cat([part[i] for part in outputs]).float().numpy()
        for i, name in enumerate(find_kind(kind).outputs)
    }
    np.savez_compressed(folder / REFERENCE, images=images, **arrays)  # type: ignore[arg-type]


def check_parity(draft: Bundle) -> list[Parity]:
    """Prove every engine whose artifact the draft has.

    Raises `ProofError` if one does not reproduce the network in fp32. A coarser precision that does
    not is no reason to stop: it is listed with its refusal, and serving will find the same.
    """
    results: list[Parity] = []
    for name in ENGINES:
        if not any(artifact.engine == name for artifact in draft.manifest.artifacts):
            continue
        tried = find_engine(name).precisions(EngineOptions(engines=(name,)))
        for precision in dict.fromkeys((*tried, "fp32")):
            results.append(_check(draft, name, precision))
    failed = [parity for parity in results if parity.precision == "fp32" and parity.proof is None]
    if failed:
        reasons = "; ".join(f"{parity.engine}: {parity.refusal}" for parity in failed)
        raise ProofError(
            f"{draft.manifest.name} is not published: an exported artifact does not do what the "
            "trained network does "
            f"({reasons})"
        )
    return results


def _check(draft: Bundle, name: str, precision: str) -> Parity:
    options = EngineOptions(engines=(name,), threads=usable_cores())
    try:
        engine = find_engine(name).open_engine(draft, precision, options)
    except EngineError as error:
        return Parity(name, precision, None, str(error))
    try:
        return Parity(name, precision, prove(draft, engine, every_way=True))
    except ProofError as error:
        return Parity(name, precision, None, str(error))
    finally:
        engine.close()
