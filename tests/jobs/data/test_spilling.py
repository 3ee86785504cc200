"""Where decoded images go through Ray's object store, as between nodes, they never fill it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private import internal_api

from cluster.session import Session
from jobs.data.config import DataConfig
from jobs.data.index import build_index
from jobs.data.streams import IndexedImages, StreamOptions
from models.preprocess import PreprocessSpec
from tests.jobs.data.images import class_files, write

SPEC = PreprocessSpec(height=256, width=256)
IMAGE_BYTES = 256 * 256 * 3
NUM_IMAGES, PER_TASK, BATCH = 640, 32, 16


def object_store() -> Any:
    state = internal_api.get_state_from_address(ray.get_runtime_context().gcs_address)
    return internal_api.get_memory_info_reply(state).store_stats


@pytest.mark.ray
@pytest.mark.parametrize("seconds", [0.0, 0.05], ids=["quick", "slow"])
def test_a_stream_through_the_object_store_holds_a_few_chunks_and_spills_nothing(
    ray_session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    write(tmp_path / "train", class_files({"bad": NUM_IMAGES // 2, "ok": NUM_IMAGES // 2}))
    config = DataConfig(uri=str(tmp_path), split={"train": 1.0, "validation": 0.0, "test": 0.0})
    options = StreamOptions(images_per_task=PER_TASK, cpu_limit=2, prefetch_batches=2)
    images = IndexedImages(build_index(config, SPEC), SPEC, options)
    monkeypatch.delattr(os, "memfd_create")  # what tasks of the same node hand images over by
    before, most, num_images = object_store(), 0, 0
    for batch in images.batches("train", batch_size=BATCH, shuffle=True):
        num_images += len(batch)
        most = max(most, object_store().object_store_bytes_used)
        time.sleep(seconds)
    after = object_store()
    assert num_images == NUM_IMAGES
    travelled = after.cumulative_created_bytes - before.cumulative_created_bytes
    assert travelled >= NUM_IMAGES * IMAGE_BYTES, "they went another way"
    # Two being computed, one ahead of them, one that is being cut into batches, and one that has
    # been and is about to be freed.
    assert most - before.object_store_bytes_used < 6 * PER_TASK * IMAGE_BYTES
    assert after.spilled_bytes_total == before.spilled_bytes_total
