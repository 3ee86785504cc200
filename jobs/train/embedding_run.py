"""A whole run of kind `embedding`, from a configuration to a published bundle.

As `jobs.train.pipeline`, but there is no right answer for a vector: the
exported model is judged by what its vectors find, among images that were not trained on and among
classes that were not, beside the features that its backbone began with.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional

from cluster.environment import data_cpus, usable_cores
from jobs.console import Advance, bar
from jobs.data.index import Index
from jobs.data.streams import IndexedImages
from jobs.data.tables import read_index
from jobs.export.exporter import Draft, Provenance, code_revision, digest_of, export_draft, finish
from jobs.lease import Lease
from jobs.train import report
from jobs.train.config import TrainConfig
from jobs.train.embedding_network import EmbeddingNetwork, ServedEmbedding
from jobs.train.features import Extractor, open_extractor
from jobs.train.history import EpochRecord
from jobs.train.hold_out import HELD_OUT, has_pair, hold_out, lonely, refuse_lonely
from jobs.train.retrieval import Retrieval, retrieve
from jobs.train.retrieval_report import CARD, Found, embedding_card, retrieval_table
from jobs.train.stages import (
    evaluation_split,
    opened_run,
    print_parities,
    reference_images,
    report_broken,
    timed,
    train_in_sight,
)
from jobs.train.trainer import Trained
from jobs.train.worker import open_images, prepare_network
from models.bundle import Published, publish
from models.engines.base import EngineOptions
from models.manifest import Tolerance
from models.predictor import Predictor, open_predictor

BATCH = 64
CPU = torch.device("cpu")


@dataclass(frozen=True)
class EmbeddingOutcome:
    """What a run gave. `index` has the classes that were trained on, `seconds` where the time went,
    by stage.
    """

    published: Published
    index: Index
    held_out: Index | None
    split: str  # of the held-out images
    evaluation: Found
    history: list[EpochRecord]
    seconds: dict[str, float] = field(default_factory=dict)


def run_embedding(config: TrainConfig, console: Console) -> EmbeddingOutcome:
    """Train and publish one embedding model. Needs a running Ray.

    Raises the errors of its stages; unless it returns, nothing was published.
    """
    assert config.embedding is not None
    with opened_run(config, console) as (run_id, lease):
        return _run(config, run_id, lease, console)


def _run(config: TrainConfig, run_id: str, lease: Lease, console: Console) -> EmbeddingOutcome:
    assert config.embedding is not None
    seconds: dict[str, float] = {}
    with timed(seconds, "index"):
        whole = read_index(config.data, config.preprocess, console, cpu_limit=data_cpus())
        report_broken(config, whole.quarantine, run_id, "quarantine.jsonl", console)
        divided = hold_out(whole, config.embedding.held_out_classes, config.data.split.seed)
    index, held_out = divided.trained, divided.held_out
    if held_out is not None:
        names = ", ".join(held_out.classes)
        console.print(f"held out, never trained on: {names}", highlight=False, markup=False)
    split = evaluation_split(config, index)
    _check_pairs(index, split, held_out, console)
    with timed(seconds, "train"):
        trained = train_in_sight(config, index, run_id, lease, console)
    with tempfile.TemporaryDirectory(prefix="sightline-draft-") as folder:
        with timed(seconds, "export"):
            draft = _export(config, index, trained, run_id, Path(folder))
            print_parities(draft, console)
        with timed(seconds, "evaluate"):
            images = open_images(config, index, data_cpus())
            own, start = _judge(config, draft, images, split, console)
            report_broken(config, images.broken, run_id, f"quarantine-{split}.jsonl", console)
            found = Found(split, own, start)
            if held_out is not None:
                images = open_images(config, held_out, data_cpus())
                others = _judge(config, draft, images, HELD_OUT, console)
                report_broken(config, images.broken, run_id, "quarantine-classes.jsonl", console)
                found = Found(split, own, start, *others, classes=held_out.classes)
            console.print(retrieval_table(found))
        lease.check()
        with timed(seconds, "publish"):
            published = _publish(config, index, trained, draft, found)
    console.print(f"published {published.uri}")
    return EmbeddingOutcome(published, index, held_out, split, found, trained.history, seconds)


def _check_pairs(index: Index, split: str, held_out: Index | None, console: Console) -> None:
    """Raise `DataError` where nothing could be measured after the training, and say where the best
    epoch cannot be told.
    """
    refuse_lonely(index, split)
    if held_out is not None:
        refuse_lonely(held_out, HELD_OUT)
    if index.num_images("validation") and not has_pair(index, "validation"):
        console.print(
            "[yellow]note:[/] no class has two validation images, so epochs cannot be compared, "
            "and the last one is kept",
            highlight=False,
        )


def _export(
    config: TrainConfig, index: Index, trained: Trained, run_id: str, folder: Path
) -> Draft:
    return export_draft(
        ServedEmbedding(cast(EmbeddingNetwork, trained.network)),
        folder,
        name=config.name,
        kind=config.kind,
        classes=(),
        preprocess=config.preprocess,
        reference_images=reference_images(config, index),
        provenance=Provenance(
            run_id, digest_of(config.model_dump_json()), code_revision(Path(__file__).parent)
        ),
        tolerance=Tolerance(
            probability=config.export.probability_tolerance, cosine=config.export.cosine_tolerance
        ),
    )


def _judge(
    config: TrainConfig, draft: Draft, images: IndexedImages, split: str, console: Console
) -> tuple[Retrieval, Retrieval]:
    """Return what a bundle's vectors find in a split, through the engine that would serve it, and
    what the pooled features of the backbone find that the run began with.

    Raises `DataError` if no class has two images there.
    """
    device = torch.device("cuda") if config.workers.use_gpu and torch.cuda.is_available() else CPU
    before = prepare_network(config, 2)
    total = images.num_images(split)
    with ExitStack() as stack:
        predictor = open_predictor(draft.bundle, EngineOptions(threads=usable_cores()))
        stack.callback(predictor.close)
        extract = stack.enter_context(open_extractor(before, device, torch.get_num_threads()))
        advance = stack.enter_context(bar(console, f"{split} images", total))
        parts = list(_both(predictor, extract, images, split, advance))
    labels = torch.from_numpy(np.concatenate([labels for *_, labels in parts]))
    trained = retrieve(torch.cat([vectors for vectors, *_ in parts]), labels)
    start = retrieve(torch.cat([features for _, features, _ in parts]), labels)
    if trained is None or start is None:
        raise lonely(len(labels), len(images.classes), split)
    return trained, start


def _both(
    predictor: Predictor,
    extract: Extractor,
    images: IndexedImages,
    split: str,
    advance: Advance,
) -> Iterator[tuple[Tensor, Tensor, npt.NDArray[np.int64]]]:
    """Yield per batch the vectors, the features at unit length, and the labels; each image is read
    once.
    """
    for batch in images.batches(split, batch_size=BATCH, shuffle=False):
        vectors = torch.from_numpy(predictor.predict(batch.images).embedding)
        features = functional.normalize(torch.from_numpy(extract(batch.images)), dim=1)
        yield vectors, features, batch.labels
        advance(len(batch))


def _publish(
    config: TrainConfig, index: Index, trained: Trained, draft: Draft, found: Found
) -> Published:
    folder = draft.folder
    report.draw_curves(trained.history, config.monitor, folder / report.CURVES)
    card = embedding_card(draft.manifest, index, found, config)
    (folder / CARD).write_text(card, encoding="utf-8")
    draft = finish(draft, found.flat(), [folder / CARD, folder / report.CURVES])
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return publish(config.store, draft.manifest, folder)
