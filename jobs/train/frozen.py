"""Train with a frozen backbone: compute this worker's features, put the shares together, fit the
head on the first worker.

The shares travel through the run store, as files: together they may be larger than any worker's
memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from jobs.data.index import Index
from jobs.data.streams import IndexedImages
from jobs.data.transforms import Augmentation
from jobs.train.borders import Place, StoppedError, Watcher
from jobs.train.checkpoints import Checkpoints
from jobs.train.config import TrainConfig
from jobs.train.embedding_network import EmbeddingNetwork
from jobs.train.feature_cache import FeatureCache
from jobs.train.features import Features, compute_features, open_extractor, scratch_folder
from jobs.train.head import fit_head
from jobs.train.history import best_epoch, score
from jobs.train.network import Network
from jobs.train.projection import fit_projection
from models.errors import DataError
from models.storage import open_store

FEATURE_BATCH = 64


def fit_frozen(
    config: TrainConfig,
    index: Index,
    images: IndexedImages,
    checkpoints: Checkpoints,
    network: Network,
    run_id: str,
    place: Place,
    watcher: Watcher,
) -> None:
    """Do one worker's part; the first worker leaves the result in the checkpoints.

    Raises `StorageError` if the disk for temporary files is too small for the features.
    """
    cache = FeatureCache(open_store(config.runs, is_patient=True).child("features"))
    augmentation = Augmentation(config.augment)
    keys: dict[str, str] = {}
    parts: dict[str, Features] = {}
    with scratch_folder() as scratch:
        with open_extractor(network, place.device, torch.get_num_threads()) as extract:
            for split in ("train", "validation"):
                num_views = config.network.num_views if split == "train" else 1
                path = scratch / split
                is_stored = True

                def compute(
                    split: str = split, num_views: int = num_views, path: Path = path
                ) -> Features:
                    nonlocal is_stored
                    is_stored = False
                    return compute_features(
                        images.batches(
                            split,
                            batch_size=FEATURE_BATCH,
                            shuffle=False,
                            rank=place.rank,
                            world=place.world,
                        ),
                        extract,
                        augmentation,
                        path,
                        num_views=num_views,
                        seed=config.seed + place.rank,
                        advance=lambda count: _step(watcher, count),
                    )

                share = images.order(
                    split, batch_size=FEATURE_BATCH, rank=place.rank, world=place.world
                )
                key = cache.key(config, network, index, split, num_views, place.rank, place.world)
                keys[split], parts[split] = cache.get(
                    key,
                    path,
                    compute,
                    expected=len(share) * num_views,
                    partial=f"{key}-{run_id}",
                )
                if is_stored:
                    watcher.step(len(parts[split]) // num_views, float("nan"))
        others = _others(keys, place)
        if not place.is_first:
            return
        for split, part in parts.items():
            parts[split] = _join(part, cache, [other[split] for other in others])
        if not len(parts["train"]):
            raise DataError("not one training image could be read")
        fitted = parts["train"], parts["validation"], config, index.classes, watcher.epoch
        with _one_thread():
            if isinstance(network, EmbeddingNetwork):
                history = fit_projection(network, *fitted)
            else:
                history = fit_head(network, *fitted)
    best = history[best_epoch(history, config.monitor)]
    checkpoints.save(
        {"served": network.state_dict(), "history": [vars(record) for record in history]},
        next_epoch=len(history),
        score=score(best, config.monitor),
        is_best=True,
    )


def _step(watcher: Watcher, count: int) -> None:
    """Count images whose features are there, and end if that is asked."""
    watcher.step(count, float("nan"))
    notice = watcher.notice()
    if notice is not None and notice.ends:
        raise StoppedError(
            f"stopped while features were computed, because of {notice.reason}; those of a split "
            "that was finished are kept"
        )


def _others(keys: dict[str, str], place: Place) -> list[dict[str, str]]:
    """Wait until every worker has stored its shares; return the keys of the other workers'."""
    if place.world == 1:
        return []
    gathered: list[dict[str, str]] = [{} for _ in range(place.world)]
    torch.distributed.all_gather_object(gathered, keys)
    return [other for rank, other in enumerate(gathered) if rank != place.rank]


def _join(mine: Features, cache: FeatureCache, others: Sequence[str]) -> Features:
    """Append the stored shares of the other workers to the file of the first."""
    labels, weights = [mine.labels], [mine.weights]
    width = mine.num_features
    with mine.path.open("ab") as file:
        for key in others:
            share = cache.load(key, mine.path.with_suffix(".share"))
            with share.path.open("rb") as source:
                shutil.copyfileobj(source, file)
            labels.append(share.labels)
            weights.append(share.weights)
            width = width or share.num_features
    return replace(mine, labels=torch.cat(labels), weights=torch.cat(weights), num_features=width)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Give torch one thread: the head's matrices are small, and on cores that Ray's processes use
    too, waiting for a second thread took seven times as long (1.0 against 0.14 s an epoch, measured
    on 2 cores)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
