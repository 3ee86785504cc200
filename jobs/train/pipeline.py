"""A whole run, from a configuration to a published bundle.

Index the images, train, export, prove every artifact, evaluate the exported model on the test
split, publish. The figures are those of the engine that will serve, not of the network in training:
what is reported is what is deployed.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from rich.console import Console

from cluster.environment import data_cpus
from jobs.console import bar
from jobs.data.index import Index
from jobs.data.places import Place, places_of, read_place
from jobs.data.quarantine import Broken, keep_quarantine
from jobs.data.tables import print_broken, read_index
from jobs.evaluate.calibration import Temperature
from jobs.evaluate.outputs import Outputs, collect
from jobs.evaluate.report import Report
from jobs.export.exporter import Draft, Provenance, code_revision, digest_of, export_draft, finish
from jobs.lease import Lease, acquire
from jobs.train import report
from jobs.train.bar import BarWatcher
from jobs.train.borders import StoppedError
from jobs.train.config import ExportConfig, TrainConfig
from jobs.train.history import EpochRecord, best_epoch, describe
from jobs.train.idle import idle_settings
from jobs.train.judge import (
    calibrate,
    calibration_figures,
    evaluate,
    kept_outputs,
    report_on,
    write_documents,
)
from jobs.train.metrics import Evaluation
from jobs.train.network import ServedNetwork
from jobs.train.stop import StopRequest
from jobs.train.trainer import Trained, train
from jobs.train.worker import check_tracking, open_images, prepare_network
from jobs.train.wrapping import check_compiler
from models.bundle import Published, publish
from models.errors import ConfigError, DataError, ImageError, NotFoundError
from models.kinds import find_kind
from models.manifest import Tolerance
from models.preprocess import Box, prepare
from models.storage import is_remote, open_store
from models.validation_outputs import VALIDATION, dump_outputs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a run gave. `seconds` says where the time went, by stage."""

    published: Published
    index: Index
    split: str  # that the evaluation was made on
    evaluation: Evaluation
    history: list[EpochRecord]
    report: Report
    temperature: Temperature
    seconds: dict[str, float] = field(default_factory=dict)


def run_training(config: TrainConfig, console: Console) -> Outcome:
    """Train and publish one model. Needs a running Ray.

    Raises the errors of its stages; unless it returns, nothing was published. Two runs of one name
    would write each other's checkpoints: the second is refused while the first is alive.
    """
    if config.embedding is not None:
        raise ConfigError(
            "kind: embedding answers with vectors and has no classes to be judged by here; train "
            "it by python -m jobs.train or jobs.train.embedding_run"
        )
    run_id = config.run or new_run_id()
    for note in idle_settings(config):
        console.print(f"[yellow]note:[/] {note}", highlight=False)
    # What cannot work shows before the images are read: hours before it would be needed.
    prepare_network(config, 2)
    check_tracking(config)
    if not config.workers.num_workers:
        check_compiler(config.compile)
    for uri in dict.fromkeys((config.store, config.runs)):
        open_store(uri).check_writable()
    with _claimed(config, run_id) as lease:
        return _run(config, run_id, lease, console)


def _run(config: TrainConfig, run_id: str, lease: Lease, console: Console) -> Outcome:
    seconds: dict[str, float] = {}
    with _timed(seconds, "index"):
        index = read_index(config.data, config.preprocess, console, cpu_limit=data_cpus())
        _report_broken(config, index.quarantine, run_id, "quarantine.jsonl", console)
    split = _evaluation_split(config, index)
    with _timed(seconds, "train"):
        trained = _train(config, index, run_id, lease, console)
    with tempfile.TemporaryDirectory(prefix="sightline-draft-") as folder:
        with _timed(seconds, "calibrate"):
            temperature = calibrate(config, index, trained.network, console)
        with _timed(seconds, "export"):
            draft = _export(config, index, trained, temperature.value, run_id, Path(folder))
            _print_parities(draft, console)
        with _timed(seconds, "evaluate"):
            evaluation, outputs = _evaluate(config, index, draft, split, run_id, console)
            judged = report_on(config, index, draft, outputs, split, console)
            draft = _with_outputs(config, index, draft, split, console)
        lease.check()
        with _timed(seconds, "publish"):
            figures = {**evaluation.flat(), **calibration_figures(judged, temperature)}
            draft = finish(draft, figures, [])
            published = _publish(config, index, trained, draft, evaluation, judged)
    console.print(f"published {published.uri}")
    return Outcome(
        published, index, split, evaluation, trained.history, judged, temperature, seconds
    )


@contextmanager
def _claimed(config: TrainConfig, run_id: str) -> Iterator[Lease]:
    """Hold the name of the run."""
    store = open_store(config.runs).child(f"{run_id}/lock")
    if not is_remote(store.uri):
        Path(store.uri).mkdir(parents=True, exist_ok=True)
    lease = acquire(store, "run")
    try:
        yield lease
    finally:
        lease.release(forget=True)
        if not is_remote(store.uri):
            with suppress(OSError):  # another run may have begun in it
                Path(store.uri).rmdir()


def new_run_id() -> str:
    """Return a name for a run: sortable by time, and unlike any other."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def _report_broken(
    config: TrainConfig, broken: Sequence[Broken], run_id: str, name: str, console: Console
) -> None:
    """Keep the list of images that were left out with the run, and show how it begins."""
    if broken:
        print_broken(broken, keep_quarantine(broken, config.runs, run_id, name), console)


def _train(
    config: TrainConfig, index: Index, run_id: str, lease: Lease, console: Console
) -> Trained:
    frozen = config.network.freeze == "backbone"
    images = index.num_images("train")
    total = images + index.num_images("validation") if frozen else images * config.epochs
    console.print(
        f"run {run_id}: {config.network.backbone}, {config.epochs} epochs", highlight=False
    )
    if not frozen and config.images_per_class is None:
        _report_tail(config, index, console)
    stop = StopRequest()
    with bar(console, "features" if frozen else "training", total) as advance, stop.listening():
        watcher = BarWatcher(console, advance, lease, stop, quiet_epochs=frozen)
        try:
            trained = train(config, index, run_id, watcher)
        except StoppedError as error:
            raise StoppedError(f"{error}; to go on, run again with run={run_id}") from error
    kept = trained.history[best_epoch(trained.history, config.monitor)]
    console.print(f"kept {describe(kept)}", highlight=False)
    return trained


def _report_tail(config: TrainConfig, index: Index, console: Console) -> None:
    """Say how many images an epoch goes without, or sees twice, so that every batch is whole."""
    world = max(1, config.workers.most)
    group, images = config.batch_size * world, index.num_images("train")
    left = open_images(config, index).num_left_out(
        "train", batch_size=config.batch_size, world=world
    )
    if images < group:
        console.print(f"an epoch repeats images: one step takes {group:,}, there are {images:,}")
    elif left:
        console.print(
            f"every epoch leaves out {left:,} of {images:,} images, other ones each time: a step "
            f"takes {group:,}",
            highlight=False,
        )


def _export(
    config: TrainConfig,
    index: Index,
    trained: Trained,
    temperature: float,
    run_id: str,
    folder: Path,
) -> Draft:
    return export_draft(
        ServedNetwork(trained.network, temperature),
        folder,
        name=config.name,
        kind=config.kind,
        classes=index.classes,
        preprocess=config.preprocess,
        reference_images=reference_images(config, index),
        provenance=Provenance(
            run_id, digest_of(config.model_dump_json()), code_revision(Path(__file__).parent)
        ),
        tolerance=tolerance_of(config.export, temperature),
        temperature=temperature,
    )


def tolerance_of(export: ExportConfig, temperature: float) -> Tolerance:
    """Return how far an engine may stray. A temperature below 1 makes more of the same difference
    between two logits, so that much more of one between probabilities is allowed: else to calibrate
    a model would cost it its faster precision.
    """
    allowed = min(1.0, export.probability_tolerance / min(1.0, temperature))
    return Tolerance(probability=allowed, cosine=export.cosine_tolerance)


def reference_images(config: TrainConfig, index: Index) -> npt.NDArray[np.uint8]:
    """Return prepared images (N, H, W, 3), the classes in turn, from the validation split where
    there is one.
    """
    split = "validation" if index.num_images("validation") else "train"
    rows = index.table.filter(pc.equal(index.table["split"], split))
    by_class: dict[int, list[tuple[Place, Box | None]]] = {}
    found = zip(places_of(rows), rows["box"].to_pylist(), rows["label"].to_pylist(), strict=True)
    for place, box, label in found:
        by_class.setdefault(label, []).append((place, box))
    in_turn = (one for row in zip_longest(*by_class.values()) for one in row if one is not None)
    return np.stack(list(islice(_readable(in_turn, config), config.export.num_reference_images)))


def _readable(
    images: Iterator[tuple[Place, Box | None]], config: TrainConfig
) -> Iterator[npt.NDArray[np.uint8]]:
    """Prepare images, passing over those that broke since the index was made.

    Raises `DataError` if none is left.
    """
    found = 0
    for place, box in images:
        try:
            image = prepare(read_place(place), config.preprocess, config.data.limits, box)
        except (ImageError, NotFoundError):
            continue
        found += 1
        yield image
    if not found:
        raise DataError(f"no image of {config.data.uri} can be read any more")


def _print_parities(draft: Draft, console: Console) -> None:
    for parity in draft.parities:
        if parity.proof is None:
            console.print(
                f"[yellow]note:[/] {parity.engine} {parity.precision} is not accurate enough: "
                f"{parity.refusal}",
                highlight=False,
            )
        else:
            console.print(
                f"proved {parity.engine} {parity.precision}: largest probability difference "
                f"{parity.proof.largest_probability_difference:.5f}, lowest cosine "
                f"{parity.proof.lowest_cosine:.5f}",
                highlight=False,
            )


def _evaluation_split(config: TrainConfig, index: Index) -> str:
    """Return the split to judge the model by: test, or validation where there is no test."""
    split = next((s for s in ("test", "validation") if index.num_images(s)), None)
    if split is None:
        raise DataError(
            f"{config.data.uri} has neither test nor validation images to judge the model by; set "
            "data.split, or add images"
        )
    return split


def _evaluate(
    config: TrainConfig, index: Index, draft: Draft, split: str, run_id: str, console: Console
) -> tuple[Evaluation, Outputs]:
    images = open_images(config, index, data_cpus())
    with bar(console, f"{split} images", index.num_images(split)) as advance:
        outputs = collect(draft.bundle, images, split, advance)
    evaluation = evaluate(outputs, [entry.name for entry in draft.manifest.classes])
    _report_broken(config, images.broken, run_id, f"quarantine-{split}.jsonl", console)
    console.print(report.evaluation_table(evaluation, f"{split} split"))
    return evaluation, outputs


def _with_outputs(
    config: TrainConfig, index: Index, draft: Draft, split: str, console: Console
) -> Draft:
    """Keep what the model says of the validation images, where its labels may change later."""
    if not find_kind(config.kind).has_label_map:
        return draft
    # Thresholds are to be chosen on images that the figures are not from, where there are any.
    split = "validation" if index.num_images("validation") else split
    images = open_images(config, index, data_cpus())
    with bar(console, "outputs to keep", index.num_images(split)) as advance:
        outputs = collect(draft.bundle, images, split, advance)
    path = draft.folder / VALIDATION
    path.write_bytes(dump_outputs(kept_outputs(outputs, split)))
    return finish(draft, {}, [path])


def _publish(
    config: TrainConfig,
    index: Index,
    trained: Trained,
    draft: Draft,
    evaluation: Evaluation,
    judged: Report,
) -> Published:
    folder = draft.folder
    report.draw_confusion(evaluation, judged.split, folder / report.CONFUSION)
    report.draw_curves(trained.history, config.monitor, folder / report.CURVES)
    documents = write_documents(draft, judged, index, config.network.backbone)
    documents += [folder / name for name in (report.CONFUSION, report.CURVES)]
    draft = finish(draft, {}, documents)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return publish(config.store, draft.manifest, folder)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
