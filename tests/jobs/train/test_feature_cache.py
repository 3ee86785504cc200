"""Features are found again by whoever would compute the same ones."""

from __future__ import annotations

from pathlib import Path

from jobs.train.feature_cache import FeatureCache
from models.storage import open_store
from tests.jobs.train.test_identity import make_index
from tests.jobs.train.test_loop import make_config, make_network


def test_features_of_a_gpu_are_not_those_of_a_cpu(tmp_path: Path) -> None:
    """They are rounded to bfloat16 there, and a run on a CPU took them for its own."""
    cache = FeatureCache(open_store(tmp_path))

    def key(**changes: object) -> str:
        return cache.key(make_config(**changes), make_network(), make_index(), "train", 1, 0, 1)

    assert key() == key(workers={"num_workers": 1})
    assert key() != key(workers={"use_gpu": True})
