"""Features that were computed before, kept in the run store under a digest of all they depend
on.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
import torch

from jobs.data.index import Index
from jobs.train.config import TrainConfig
from jobs.train.features import Features
from jobs.train.network import Network
from models.errors import NotFoundError
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
        """Return a digest of the weights, the images and their labels, and everything done to
        them.
        """
        digest = hashlib.sha256()
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
        settings = (config.preprocess.model_dump_json(), split, num_views, rank, world)
        augment = (config.augment.model_dump_json(), config.seed) if num_views > 1 else ()
        digest.update(repr((*settings, *augment)).encode())
        return digest.hexdigest()[:32]

    def get(self, key: str, compute: Callable[[], Features]) -> Features:
        """Return the stored features, or compute and store them."""
        try:
            with np.load(io.BytesIO(self.store.read(f"{key}.npz")), allow_pickle=False) as stored:
                return Features(
                    torch.from_numpy(stored["values"]), torch.from_numpy(stored["labels"])
                )
        except NotFoundError:
            pass
        # a cache is never worth failing for: compute again and overwrite
        except Exception as error:
            logger.warning(
                "cached features %s cannot be read (%s); computing them again", key, error
            )
        features = compute()
        buffer = io.BytesIO()
        np.savez(buffer, values=features.values.numpy(), labels=features.labels.numpy())
        self.store.write(f"{key}.npz", buffer.getvalue())
        return features
