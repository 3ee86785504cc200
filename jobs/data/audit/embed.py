"""Feature vectors of images, from a bundle's engine or a pretrained backbone, streamed.

The images come as training reads them: decoded by Ray tasks at the model's size, a batch at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.environment import data_cpus, usable_cores
from jobs.data.audit.config import AuditJob
from jobs.data.audit.subject import Subject
from jobs.data.index import SCHEMA, Index
from jobs.data.streams import IndexedImages, StreamOptions
from models.bundle import open_bundle
from models.engines.base import EngineOptions
from models.errors import ConfigError
from models.predictor import open_predictor
from models.preprocess import PreprocessSpec

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Extract = Callable[[npt.NDArray[np.uint8]], Floats]
BATCH = 64


@dataclass(frozen=True)
class Embedder:
    """Turns prepared images (N, H, W, 3) into feature vectors (N, D)."""

    name: str
    spec: PreprocessSpec
    extract: Extract


class NoModelError(ConfigError):
    """There are no weights to be had for the configured backbone."""


@contextmanager
def open_embedder(bundle: str | None, job: AuditJob) -> Iterator[Embedder]:
    """Open the bundle, or the backbone of the configuration with its pretrained weights.

    Raises `NoModelError` when there is neither.
    """
    if bundle is not None:
        predictor = open_predictor(open_bundle(bundle), EngineOptions(threads=usable_cores()))
        try:
            yield Embedder(
                predictor.manifest.label,
                predictor.manifest.preprocess,
                lambda images: predictor.predict(images).embedding,
            )
        finally:
            predictor.close()
        return
    with _open_backbone(job) as embedder:
        yield embedder


@contextmanager
def _open_backbone(job: AuditJob) -> Iterator[Embedder]:
    import torch

    from jobs.train.features import open_extractor
    from jobs.train.network import build_network
    from jobs.train.weights import load_weights

    name, weights = job.network.backbone, job.network.weights
    if weights == "none":
        raise NoModelError(f"network.weights is none, and features of a random {name} say nothing")
    network = build_network(name, 2)
    try:
        load_weights(network, name, weights)
    except ConfigError as error:
        raise NoModelError(str(error)) from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with open_extractor(network, device, usable_cores()) as extract:
        yield Embedder(f"{name} ({weights})", job.preprocess, extract)


def embed(
    subject: Subject,
    rows: npt.NDArray[np.int64],
    embedder: Embedder,
    job: AuditJob,
    advance: Callable[[int], None],
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the rows that could be read, and their vectors (M, D). Needs a running Ray."""
    table = subject.table.take(pa.array(rows))
    split = pa.array(["train"] * len(table), pa.string())
    computed = {"label": pa.array(subject.codes[rows]), "split": split}
    columns = [computed[name] if name in computed else table[name] for name in SCHEMA.names]
    index = Index(pa.table(columns, schema=SCHEMA).combine_chunks(), subject.names)
    options = StreamOptions.from_config(job.data, data_cpus())
    images = IndexedImages(index, embedder.spec, options)
    ids: list[npt.NDArray[np.int64]] = []
    vectors: list[Floats] = []
    for batch in images.batches("train", batch_size=BATCH):
        ids.append(batch.ids)
        vectors.append(embedder.extract(batch.images).astype(np.float32))
        advance(len(batch))
    return rows[np.concatenate(ids)], np.concatenate(vectors)


def choose_rows(subject: Subject, most: int) -> npt.NDArray[np.int64]:
    """Return the usable rows, or so many of them, drawn by lot, class by class in proportion."""
    rows = subject.usable
    if len(rows) <= most:
        return rows
    random = np.random.default_rng(0)
    codes = subject.codes[rows]
    chosen = [
        random.permutation(rows[codes == code])[
            : -(-most * int((codes == code).sum()) // len(rows))
        ]
        for code in np.unique(codes)
    ]
    return np.sort(np.concatenate(chosen))
