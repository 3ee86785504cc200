"""Ray Data's own readers, as its documentation shows them.

`parquet` reads the shards of the packed set and decodes as Sightline does in `map_batches`;
`images` is `read_images` over the files, which decodes and resizes by itself. Files are shuffled,
and where `options` give a `buffer`, rows within it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.data

from benchmarks.ingest.consume import Batches
from benchmarks.ingest.loaders.transforms import SPEC, prepared
from cluster.session import SessionOptions, open_session

if TYPE_CHECKING:
    from benchmarks.ingest.reader import Request


@contextmanager
def loading(request: Request) -> Iterator[Callable[[], Batches]]:
    """Start Ray."""

    def open_batches() -> Batches:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        dataset = OPENERS[request.way](request.uri)
        buffer = request.options.get("buffer")
        for batch in dataset.iter_batches(
            batch_size=request.batch_size,
            drop_last=True,
            local_shuffle_buffer_size=buffer,
            local_shuffle_seed=request.seed if buffer else None,
        ):
            yield batch["image"], batch["path"]

    with open_session(SessionOptions(connect=False, num_cpus=request.workers)):
        yield open_batches


def _open_parquet(uri: str) -> Any:
    shards = [str(path) for path in sorted(Path(uri).glob("*.parquet"))]
    found = ray.data.read_parquet(shards, columns=["image", "path"], shuffle="files")
    return found.map_batches(_prepare, batch_size=64)


def _prepare(batch: dict[str, Any]) -> dict[str, Any]:
    return {"image": np.stack([prepared(data) for data in batch["image"]]), "path": batch["path"]}


def _open_images(uri: str) -> Any:
    return ray.data.read_images(
        f"{uri}/train",
        size=(SPEC.height, SPEC.width),
        mode="RGB",
        include_paths=True,
        shuffle="files",
    )


OPENERS: dict[str, Callable[[str], Any]] = {"parquet": _open_parquet, "images": _open_images}
