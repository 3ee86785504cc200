"""`python -m tests.faults.data.reading IMAGES OUTPUT`: read an epoch of shuffled batches, and write
a line for each: its digest.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import ray

from jobs.data.config import DataConfig
from jobs.data.index import build_index
from jobs.data.streams import IndexedImages, StreamOptions
from models.preprocess import PreprocessSpec

BATCHES, BATCH = "batches.txt", 16
SPEC = PreprocessSpec(height=64, width=64)


def main(images: str, output: str) -> None:
    """Read, on the Ray that is there."""
    ray.init(log_to_driver=False)
    index = build_index(DataConfig(uri=images), SPEC)
    stream = IndexedImages(index, SPEC, StreamOptions(images_per_task=BATCH))
    with Path(output, BATCHES).open("w") as file:
        for batch in stream.batches("train", batch_size=BATCH, shuffle=True, seed=3):
            found = hashlib.sha256(batch.ids.tobytes())
            found.update(batch.labels.tobytes())
            found.update(batch.images.tobytes())
            file.write(f"{found.hexdigest()}\n")
            file.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
