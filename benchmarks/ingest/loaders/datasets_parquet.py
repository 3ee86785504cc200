"""Hugging Face datasets over the shards of the packed set, which are Parquet to it.

`own` gives the images to Pillow and torchvision, `same` their bytes to Sightline's decoder. Both
are read by PyTorch's DataLoader, as its documentation shows, and shuffle all images. `streaming`
is `same` without a copy of the set in its cache, with a shuffle buffer of 1,000 images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here is on a hub

import datasets
import numpy as np
from torch.utils.data import DataLoader, default_collate

from benchmarks.ingest.consume import Batches
from benchmarks.ingest.loaders.transforms import own_transform, prepared

if TYPE_CHECKING:
    from benchmarks.ingest.reader import Request

COLUMNS = ("image", "path")


@contextmanager
def loading(request: Request) -> Iterator[Callable[[], Batches]]:
    """Wait for nothing: libraries are loaded by importing this."""
    datasets.disable_progress_bars()

    def open_batches() -> Batches:
        found = datasets.load_dataset(
            "parquet",
            data_files=[str(path) for path in sorted(Path(request.uri).glob("*.parquet"))],
            split="train",
            columns=list(COLUMNS),
            streaming=request.way == "streaming",
            cache_dir=request.state,
        )
        found = found.cast_column("image", datasets.Image(decode=request.way == "own"))
        if request.way == "streaming":
            found = found.shuffle(seed=request.seed, buffer_size=1000).map(_prepare_one)
        else:
            found = found.shuffle(seed=request.seed)
            found = found.with_transform(_Prepare(request.way))
        yield from DataLoader(
            found,
            batch_size=request.batch_size,
            num_workers=request.workers,
            drop_last=True,
            collate_fn=_collate,
        )

    yield open_batches


class _Prepare:
    """Called with columns of one or several images, in the workers."""

    def __init__(self, way: str) -> None:
        self._transform = own_transform() if way == "own" else _of_bytes

    def __call__(self, columns: dict[str, Any]) -> dict[str, Any]:
        return {**columns, "image": [self._transform(image) for image in columns["image"]]}


def _of_bytes(image: dict[str, Any]) -> Any:
    return prepared(image["bytes"])


def _prepare_one(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "image": prepared(row["image"]["bytes"])}


def _collate(rows: list[dict[str, Any]]) -> tuple[Any, list[str]]:
    images = [row["image"] for row in rows]
    whole = np.stack(images) if isinstance(images[0], np.ndarray) else default_collate(images)
    return whole, [row["path"] for row in rows]
