"""A whole run, from a configuration to a published bundle.

Index the images, train, export, prove every artifact, evaluate the exported model on the test
split, publish. The figures are those of the engine that will serve, not of the network in training:
what is reported is what is deployed.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from cluster.environment import data_cpus
from jobs.console import bar
from jobs.data.index import Index
from jobs.data.labels import refuse_unservable
from jobs.data.tables import read_index
from jobs.evaluate.calibration import Temperature
from jobs.evaluate.outputs import Outputs, collect
from jobs.evaluate.report import Report
from jobs.export.exporter import Draft, Provenance, code_revision, digest_of, export_draft, finish
from jobs.lease import Lease
from jobs.train import report
from jobs.train.config import ExportConfig, TrainConfig
from jobs.train.history import EpochRecord
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
from jobs.train.worker import open_images
from models.bundle import Published, publish
from models.errors import ConfigError
from models.kinds import find_kind
from models.manifest import Tolerance
from models.validation_outputs import VALIDATION, dump_outputs


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


def run_training(config: TrainConfig, console: Console, *, is_trial: bool = False) -> Outcome:
    """Train and publish one model, or the best trial of a sweep. Needs a running Ray.

    Raises the errors of its stages; unless it returns, nothing was published.
    """
    if config.embedding is not None:
        raise ConfigError(
            "kind: embedding answers with vectors and has no classes to be judged by here; train "
            "it by python -m jobs.train or jobs.train.embedding_run"
        )
    with opened_run(config, console, is_trial=is_trial) as (run_id, lease):
        return _run(config, run_id, lease, console)


def _run(config: TrainConfig, run_id: str, lease: Lease, console: Console) -> Outcome:
    seconds: dict[str, float] = {}
    with timed(seconds, "index"):
        index = read_index(config.data, config.preprocess, console, cpu_limit=data_cpus())
        report_broken(config, index.quarantine, run_id, "quarantine.jsonl", console)
    refuse_unservable(config.data.uri, index.classes)
    split = evaluation_split(config, index)
    with timed(seconds, "train"):
        trained = train_in_sight(config, index, run_id, lease, console)
    with tempfile.TemporaryDirectory(prefix="sightline-draft-") as folder:
        with timed(seconds, "calibrate"):
            temperature = calibrate(config, index, trained.network, console)
        with timed(seconds, "export"):
            draft = _export(config, index, trained, temperature.value, run_id, Path(folder))
            print_parities(draft, console)
        with timed(seconds, "evaluate"):
            evaluation, outputs = _evaluate(config, index, draft, split, run_id, console)
            judged = report_on(config, index, draft, outputs, split, console)
            draft = _with_outputs(config, index, draft, split, console)
        lease.check()
        with timed(seconds, "publish"):
            figures = {**evaluation.flat(), **calibration_figures(judged, temperature)}
            draft = finish(draft, figures, [])
            published = _publish(config, index, trained, draft, evaluation, judged)
    console.print(f"published {published.uri}")
    return Outcome(
        published, index, split, evaluation, trained.history, judged, temperature, seconds
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


def _evaluate(
    config: TrainConfig, index: Index, draft: Draft, split: str, run_id: str, console: Console
) -> tuple[Evaluation, Outputs]:
    images = open_images(config, index, data_cpus())
    with bar(console, f"{split} images", index.num_images(split)) as advance:
        outputs = collect(draft.bundle, images, split, advance)
    evaluation = evaluate(outputs, [entry.name for entry in draft.manifest.classes])
    report_broken(config, images.broken, run_id, f"quarantine-{split}.jsonl", console)
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
