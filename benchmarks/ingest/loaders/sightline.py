"""Sightline: the index of a set, and batches from it, as a training worker makes them.

`way` is how an epoch is shuffled: `images`, `runs`, or `auto` as users get it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.ingest.consume import Batches
from cluster.environment import data_cpus
from cluster.session import SessionOptions, open_session
from jobs.data.config import DataConfig
from jobs.data.index import Index, build_index
from jobs.data.streams import IndexedImages, StreamOptions
from models.preprocess import PreprocessSpec

if TYPE_CHECKING:
    from benchmarks.ingest.reader import Request


@contextmanager
def loading(request: Request) -> Iterator[Callable[[], Batches]]:
    """Start Ray; a pass then begins with the index, unless `options` name a file that keeps it."""
    kept = request.options.get("index")
    config = DataConfig(
        uri=request.uri, source=request.options["source"], shuffle=request.options["shuffle"]
    )
    spec = PreprocessSpec()

    def find_index() -> Index:
        if kept is None:
            return build_index(config, spec, cpu_limit=data_cpus())
        if not Path(kept).exists():
            index = build_index(config, spec, cpu_limit=data_cpus())
            Path(kept).write_bytes(pickle.dumps(index))
        index = pickle.loads(Path(kept).read_bytes())
        assert isinstance(index, Index)
        return index

    def open_batches() -> Batches:
        images = IndexedImages(find_index(), spec, StreamOptions.from_config(config, data_cpus()))
        names = np.array(images.paths("train")) if request.options.get("named") else None
        for epoch in range(request.options.get("epochs", 1)):
            for batch in images.batches(
                "train",
                batch_size=request.batch_size,
                shuffle=True,
                seed=request.seed,
                epoch=epoch,
            ):
                yield batch.images, batch.ids if names is None else names[batch.ids]

    with open_session(SessionOptions(connect=False)):
        yield open_batches
