"""What every peer's server runs, inside the peer's own environment: an image file to an answer.

`same` is Sightline's decoder and OpenVINO engine, so that only the serving differs. `own` is what
the documentation of these libraries does: Pillow, torchvision's transforms, torch in eager mode, on
the same weights. It needs no Ray and nothing of Sightline but `models`.
"""

from __future__ import annotations

import argparse
import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from models.bundle import open_bundle
from models.engines.base import EngineOptions, engine_artifact
from models.manifest import Manifest
from models.preprocess import PreprocessSpec, prepare

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage
    from torch import Tensor

MODES = ("same", "own")
BATCH = 16  # what the examples of LitServe, Mosec and TorchServe batch at most
BATCH_WAIT_SECONDS = 0.005
VARIABLE = "SIGHTLINE_PEER_"  # how the options reach worker processes

Answer = dict[str, Any]  # {"label": str, "probabilities": [float]}


@dataclass(frozen=True)
class Options:
    """What a peer's server is told. The first port is for HTTP, the others for whatever else."""

    bundle: str
    mode: str
    precision: str
    cores: int
    ports: tuple[int, ...]
    folder: str  # the server may write here

    @property
    def port(self) -> int:
        """The port to serve HTTP on."""
        return self.ports[0]


def parse_options() -> Options:
    """Read the command line, and set the environment so that worker processes find the same."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--cores", type=int, required=True)
    parser.add_argument("--ports", type=int, nargs="+", required=True)
    parser.add_argument("--folder", required=True)
    found = vars(parser.parse_args())
    found["ports"] = " ".join(map(str, found["ports"]))
    os.environ.update({f"{VARIABLE}{name.upper()}": str(value) for name, value in found.items()})
    return read_options()


def read_options() -> Options:
    """Return what `parse_options` of the first process left in the environment."""
    found = {
        name.removeprefix(VARIABLE).lower(): value
        for name, value in os.environ.items()
        if name.startswith(VARIABLE)
    }
    ports = tuple(int(port) for port in found.pop("ports").split())
    return Options(cores=int(found.pop("cores")), ports=ports, **found)


class OpenVinoScorer:
    """Sightline's decoder and engine: one stream for a process of its own, or as many as there are
    threads that call it.
    """

    def __init__(self, options: Options, threads: int = 1) -> None:
        from models.engines.openvino_engine import open_engine

        bundle = open_bundle(options.bundle)
        self._manifest = bundle.manifest
        self._engine = open_engine(bundle, options.precision, EngineOptions(threads=threads))

    def score(self, data: bytes) -> Answer:
        """Answer for one image file."""
        image = prepare(data, self._manifest.preprocess)
        outputs = self._engine.run(image[None])
        return answers(outputs["probabilities"], self._manifest)[0]


class TorchScorer:
    """The documented way: Pillow and torchvision's transforms, then torch in eager mode with the
    thread count it chooses itself.
    """

    def __init__(self, options: Options) -> None:
        import torch

        bundle = open_bundle(options.bundle)
        self._manifest = bundle.manifest
        self._transform = torchvision_transform(bundle.manifest.preprocess)
        path = bundle.path(engine_artifact(bundle, "torch"))
        self._model = torch.export.load(path).module()

    def prepare(self, data: bytes) -> Tensor:
        """Decode one image file to uint8 (H, W, 3)."""
        from PIL import Image

        return self.transform(Image.open(io.BytesIO(data)))

    def transform(self, image: PillowImage) -> Tensor:
        """Bring a decoded image to uint8 (H, W, 3); normalisation is inside the network."""
        return self._transform(image)

    def infer(self, images: Sequence[Tensor]) -> list[Answer]:
        """Answer for N prepared images in one forward pass."""
        import torch

        with torch.inference_mode():
            outputs = self._model(torch.stack(list(images)))
        probabilities = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
        return answers(probabilities.numpy(), self._manifest)

    def score(self, data: bytes) -> Answer:
        """Answer for one image file."""
        return self.infer([self.prepare(data)])[0]


def torchvision_transform(spec: PreprocessSpec) -> Callable[[PillowImage], Tensor]:
    """Return the bundle's preprocessing in torchvision's words: a Pillow image to uint8 (H, W, 3).

    Raises `ValueError` for a rule that torchvision has no transform for.
    """
    if spec.resize != "stretch" and (spec.resize != "crop" or spec.height != spec.width):
        raise ValueError(
            f"torchvision's transforms cannot do {spec.resize!r} to {spec.height} x {spec.width}; "
            "measure with a bundle that stretches, or crops to a square"
        )
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode

    mode = InterpolationMode.BICUBIC if spec.interpolation == "bicubic" else None
    how = mode or InterpolationMode.BILINEAR
    size = (spec.height, spec.width)
    if spec.resize == "stretch":
        steps = [transforms.Resize(size, how)]
    else:
        shorter = math.ceil(spec.height / spec.crop_ratio)
        steps = [transforms.Resize(shorter, how), transforms.CenterCrop(size)]
    bring = transforms.Compose([*steps, transforms.PILToTensor()])

    def transform(image: PillowImage) -> Tensor:
        pixels: Tensor = bring(image.convert("RGB"))
        return pixels.permute(1, 2, 0)

    return transform


def answers(probabilities: np.ndarray[Any, Any], manifest: Manifest) -> list[Answer]:
    """Return label and probabilities of each row (N, C)."""
    return [
        {"label": manifest.classes[int(row.argmax())].name, "probabilities": row.tolist()}
        for row in probabilities
    ]
