"""Features that were computed before, kept in the run store under a digest of all they depend
on.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pyarrow.compute as pc
import torch

from jobs.data.index import Index
from jobs.train.config import TrainConfig
from jobs.train.features import Features
from jobs.train.network import Network
from models.errors import DataError, NotFoundError, SightlineError
from models.storage import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureCache:
    """Reads and writes `Features` by key."""

    store: Store

    def key(
        self,
        config: TrainConfig,
        network: Network,
        index: Index,
        split: str,
        num_views: int,
        rank: int,
        world: int,
    ) -> str:
        """Return a digest of the weights, the images and their labels, everything done to them, and
        what computes them: features of a GPU are rounded to bfloat16, those of a CPU are not.
        """
        by = "gpu" if config.workers.use_gpu else "cpu"  # nothing else decides where they come from
        digest = hashlib.sha256(f"4 {by} {config.network.backbone}".encode())
        for name, tensor in (
            *network.backbone.state_dict().items(),
            ("mean", network.mean),
            ("std", network.std),
        ):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        rows = index.table.filter(pc.equal(index.table["split"], split))
        for column in ("sha256", "label"):
            digest.update(repr(rows.column(column).to_pylist()).encode())
        for column in ("box", "weight"):
            if rows[column].null_count < len(rows):
                digest.update(repr((column, rows[column].to_pylist())).encode())
        if config.network.reads_stages:
            digest.update(b"stages")
        settings = (config.preprocess.model_dump_json(), split, num_views, rank, world)
        augment = (config.augment.model_dump_json(), config.seed) if num_views > 1 else ()
        digest.update(repr((*settings, *augment)).encode())
        return digest.hexdigest()[:32]

    def get(
        self, key: str, path: Path, compute: Callable[[], Features], *, expected: int, partial: str
    ) -> tuple[str, Features]:
        """Return the stored features as the local file `path`, or compute them there and store
        them; with them the key they are stored under.

        Fewer than the `expected` rows, because images could not be read this time, are stored as
        `partial` instead: another run is to try those images again.
        """
        try:
            return key, self.load(key, path)
        except NotFoundError:
            pass
        except (SightlineError, OSError, ValueError, KeyError, BadZipFile) as error:
            logger.warning(
                "cached features %s cannot be read (%s); computing them again", key, error
            )
        features = compute()
        if len(features) != expected:
            key = partial
        self.store.upload(f"{key}.f32", features.path)
        about = io.BytesIO()
        np.savez(
            about,
            labels=features.labels.numpy(),
            weights=features.weights.numpy(),
            num_features=np.array(features.num_features),
            sha256=np.array(_digest(features.path)),
        )
        self.store.write(f"{key}.npz", about.getvalue())  # last: what it describes is whole
        return key, features

    def load(self, key: str, path: Path) -> Features:
        """Copy stored features to the local file `path`.

        Raises `NotFoundError` if there are none, and `DataError` if they are damaged.
        """
        with np.load(io.BytesIO(self.store.read(f"{key}.npz")), allow_pickle=False) as about:
            labels = torch.from_numpy(about["labels"])
            weights = torch.from_numpy(about["weights"])
            num_features, digest = int(about["num_features"]), str(about["sha256"])
        self.store.download(f"{key}.f32", path)
        if _digest(path) != digest:
            raise DataError(f"{self.store.uri}/{key}.f32 is not what was written")
        return Features(path, labels, num_features, weights)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
