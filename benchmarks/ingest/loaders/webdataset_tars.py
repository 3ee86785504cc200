"""WebDataset over tar files, with its own DataLoader and a shuffle buffer of 1,000 images.

`same` decodes as Sightline does, `own` with Pillow and torchvision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import webdataset

from benchmarks.ingest.consume import Batches
from benchmarks.ingest.loaders.transforms import own_transform, prepared

if TYPE_CHECKING:
    from benchmarks.ingest.reader import Request


@contextmanager
def loading(request: Request) -> Iterator[Callable[[], Batches]]:
    """Wait for nothing: libraries are loaded by importing this."""

    def open_batches() -> Batches:
        tars = [str(path) for path in sorted(Path(request.uri).glob("*.tar"))]
        dataset = webdataset.WebDataset(
            tars, shardshuffle=len(tars), empty_check=False, seed=request.seed
        ).shuffle(request.options.get("buffer", 1000))
        if request.way == "own":
            dataset = dataset.decode("pil").to_tuple("jpg", "__key__")
            dataset = dataset.map_tuple(own_transform(), int)
        else:
            dataset = dataset.to_tuple("jpg", "__key__").map_tuple(prepared, int)
        yield from webdataset.WebLoader(
            dataset.batched(request.batch_size, partial=False),
            batch_size=None,
            num_workers=request.workers,
        )

    yield open_batches
