"""Features of a frozen backbone, computed once over a whole split and kept in a file.

A frozen backbone gives the same features in every epoch, so computing them once turns hours of
training on a CPU into minutes. On a CPU the backbone runs through OpenVINO in fp32 (164 against 30
images/s in torch eager, EfficientNet-Lite0, 2 cores without AMX), on a GPU in torch under bfloat16.

A fact one would get wrong: features are small beside images, but not small. 5 kB an image and view
(9 kB with those of all stages) would be 10 GB of memory for a million images seen twice, so they
stay on disk and are read by rows.

Shape legend: N images, D features, V views (differently augmented copies) of each image.
"""

from __future__ import annotations

import queue
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.jit._trace import TracerWarning

from jobs.data.streams import Batch
from jobs.data.transforms import Augmentation
from jobs.train.network import FeatureNetwork, Network
from models.engines.openvino_engine import shared_core
from models.errors import ConfigError, StorageError
from models.storage_errors import is_disk_full

Extractor = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
CHUNK = 8  # images per OpenVINO request
BLOCK = 4096  # rows of features in memory at once


@dataclass(frozen=True)
class Features:
    """Features (N, D), float32 rows in a file, with the labels (N,) of the images they come from,
    and how often (N,) each is to be seen, relative to the others.
    """

    path: Path
    labels: Tensor
    num_features: int
    weights: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @contextmanager
    def open_rows(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Give a function from row numbers (B,) to their features (B, D).

        It reads the file row by row instead of mapping it, since mapped pages would count as this
        process's memory.
        """
        with self.path.open("rb", buffering=0) as file:

            def rows(ids: Tensor) -> Tensor:
                values = np.empty((len(ids), self.num_features), np.float32)
                for value, row in zip(values, ids.tolist(), strict=True):
                    file.seek(row * value.nbytes)
                    file.readinto(value)  # type: ignore[arg-type]
                return torch.from_numpy(values)

            yield rows

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield values and labels in order, `BLOCK` rows at a time."""
        with self.path.open("rb") as file:
            for start in range(0, len(self), BLOCK):
                labels = self.labels[start : start + BLOCK]
                values = np.fromfile(file, np.float32, len(labels) * self.num_features)
                yield torch.from_numpy(values).view(len(labels), self.num_features), labels

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation of each feature, (D,) each, by weight."""
        weights = self.weights.double()
        total = max(float(weights.sum()), torch.finfo(torch.float32).tiny)
        mean = torch.zeros(self.num_features, dtype=torch.float64)
        for (values, _), mine in self._weighted_blocks(weights):
            mean += mine @ values.double() / total
        squares = torch.zeros_like(mean)
        for (values, _), mine in self._weighted_blocks(weights):
            squares += mine @ (values.double() - mean) ** 2
        freedom = max(total - total / len(self), total / len(self))
        return mean.float(), (squares / freedom).sqrt().float()

    def _weighted_blocks(self, weights: Tensor) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor]]:
        return zip(self.blocks(), torch.split(weights, BLOCK), strict=True)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give a folder for features on this machine's disk, which is removed afterwards.

    Raises `StorageError` if the disk gets full meanwhile.
    """
    with tempfile.TemporaryDirectory(prefix="sightline-features-") as folder:
        try:
            yield Path(folder)
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise StorageError(
                f"the disk of {folder} is full: the features of a frozen backbone take 5 to 9 kB "
                "an image and view there, on the first worker those of all images. Set TMPDIR to a "
                "larger disk, or lower network.num_views"
            ) from error


class FeatureWriter:
    """Appends features to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = path.open("wb")
        self._labels: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._width = 0

    def append(
        self, values: npt.NDArray[np.float32], labels: Tensor, weights: Tensor | None = None
    ) -> None:
        """Add rows (B, D) with their labels (B,) and weights (B,), 1 if none are given. Raises
        `ConfigError` for another number of rows: a network that mixes the images of a batch.
        """
        if len(values) != len(labels):
            raise ConfigError(
                f"the backbone gave {len(values)} rows of features for {len(labels)} images, so it "
                "cannot be exported for batches of any size; take another network.backbone"
            )
        self._width = values.shape[1]
        self._file.write(np.ascontiguousarray(values, np.float32).data)
        self._labels.append(labels)
        self._weights.append(torch.ones(len(labels)) if weights is None else weights.float())

    def close(self) -> Features:
        """Return what was written."""
        self._file.close()
        labels = torch.cat([torch.zeros(0, dtype=torch.int64), *self._labels])
        weights = torch.cat([torch.zeros(0), *self._weights])
        return Features(self._path, labels, self._width, weights)


def compute_features(
    batches: Iterable[Batch],
    extract: Extractor,
    augmentation: Augmentation,
    path: Path,
    *,
    num_views: int,
    seed: int,
    advance: Callable[[int], None],
) -> Features:
    """Run every batch through the frozen backbone into the file `path`. The first view is the image
    as it is, the others are augmented.

    With V views the result has V rows for each image.
    """
    generator = torch.Generator().manual_seed(seed)
    writer = FeatureWriter(path)
    for batch in batches:
        images, labels = torch.from_numpy(batch.images), torch.from_numpy(batch.labels)
        weights = None if batch.weights is None else torch.from_numpy(batch.weights)
        for view in range(num_views):
            seen = images if view == 0 else augmentation(images, generator)
            writer.append(extract(seen.numpy()), labels, weights)
        advance(len(batch.labels))
    return writer.close()


@contextmanager
def open_extractor(network: Network, device: torch.device, num_threads: int) -> Iterator[Extractor]:
    """Give a function from uint8 images (N, H, W, 3) to float32 features (N, D). The network is
    compiled when it is first called: where all features are found in the cache, never.
    """
    module = FeatureNetwork(network).eval()
    compiled: Extractor | None = None

    def extract(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        nonlocal compiled
        if compiled is None:
            if device.type == "cpu":
                compiled = _openvino_extractor(module, num_threads, images.shape[1:3])
            else:
                compiled = _torch_extractor(module.to(device), device)
        return compiled(images)

    yield extract


def _torch_extractor(module: FeatureNetwork, device: torch.device) -> Extractor:
    def extract(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
            result: Tensor = module(torch.from_numpy(images).to(device))
        return result.float().cpu().numpy()

    return extract


def _openvino_extractor(
    module: FeatureNetwork, num_threads: int, size: tuple[int, ...]
) -> Extractor:
    import openvino

    # Of the size that comes: some networks take no other one, and others keep it in their graph.
    example = torch.zeros(2, *size, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        # OpenVINO traces with a torch API that torch would like to be rid of; three times as fast
        # as by torch.export.
        warnings.simplefilter("ignore", FutureWarning)
        # Of sizes that became constants, which they are here.
        warnings.simplefilter("ignore", TracerWarning)
        model = openvino.convert_model(module, example_input=example, input=[-1, *size, 3])
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": num_threads,
        "INFERENCE_NUM_THREADS": num_threads,
        "ENABLE_CPU_PINNING": False,
    }
    compiled = shared_core().compile_model(model, "CPU", settings)
    idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for _ in range(num_threads):
        idle.put(compiled.create_infer_request())
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="features")

    def run(chunk: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        request = idle.get()
        try:
            request.infer([chunk], share_inputs=True)
            return np.array(request.get_output_tensor(0).data, dtype=np.float32)
        finally:
            idle.put(request)

    def extract(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        chunks = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
        return np.concatenate(list(pool.map(run, chunks)))

    return extract
