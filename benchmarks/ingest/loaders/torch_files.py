"""PyTorch's DataLoader over a folder of files.

`same` decodes as Sightline does; `own` is what its documentation shows: torchvision's `ImageFolder`
with Pillow, `Resize` and `CenterCrop`. Both shuffle all images, and give uint8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets

from benchmarks.ingest.consume import Batches
from benchmarks.ingest.loaders.transforms import own_transform
from benchmarks.ingest.sets import find_photos
from models.preprocess import PreprocessSpec, prepare

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.ingest.reader import Request


class _Files(Dataset[Any]):
    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._spec = PreprocessSpec()

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        return prepare(self._paths[number].read_bytes(), self._spec), number


class _Folder(datasets.ImageFolder):
    """With the number of the image for its label."""

    def __getitem__(self, number: int) -> tuple[Any, int]:
        return super().__getitem__(number)[0], number


@contextmanager
def loading(request: Request) -> Iterator[Callable[[], Batches]]:
    """Wait for nothing: libraries are loaded by importing this."""

    def open_batches() -> Batches:
        from pathlib import Path

        folder = Path(request.uri) / "train"
        dataset: Dataset[Any] = (
            _Files(find_photos(folder))
            if request.way == "same"
            else _Folder(str(folder), own_transform())
        )
        loader = DataLoader(
            dataset,
            batch_size=request.batch_size,
            shuffle=True,
            num_workers=request.workers,
            generator=torch.Generator().manual_seed(request.seed),
        )
        yield from loader

    yield open_batches
