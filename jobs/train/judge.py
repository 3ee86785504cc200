"""What is asked of a trained network before and after it is exported: how sure it may be, what it
answers through the engine that would serve it, and the documents that say so.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from rich.console import Console

from cluster.environment import data_cpus
from jobs.console import Advance, bar
from jobs.data.index import Index
from jobs.evaluate.assess import Seen, assess
from jobs.evaluate.calibration import Temperature, fit_temperature
from jobs.evaluate.card import model_card
from jobs.evaluate.config import EvaluateConfig
from jobs.evaluate.output import CARD, PAGE
from jobs.evaluate.outputs import Outputs
from jobs.evaluate.page import render_page
from jobs.evaluate.report import Report
from jobs.export.exporter import Draft
from jobs.train.config import TrainConfig
from jobs.train.feature_cache import FeatureCache
from jobs.train.features import open_extractor, scratch_folder
from jobs.train.metrics import Evaluation, Evaluator
from jobs.train.network import Network
from jobs.train.report import training_section
from jobs.train.worker import open_images
from models.errors import DataError, StorageError
from models.label_map import first_reading
from models.storage import open_store, split_uri
from models.validation_outputs import ValidationOutputs

CALIBRATED = 5_000  # images that one number is fitted on: more would not move it
BATCH = 64


def evaluate(outputs: Outputs, class_names: list[str]) -> Evaluation:
    """Return the figures of what a model said."""
    evaluator = Evaluator(class_names)
    evaluator.update(torch.from_numpy(outputs.probabilities), torch.from_numpy(outputs.truth))
    return evaluator.compute()


def kept_outputs(outputs: Outputs, split: str) -> ValidationOutputs:
    """Return what a model said as it is kept in a bundle, to try label maps on."""
    return ValidationOutputs(split, outputs.probabilities, outputs.truth.astype(np.intp))


def calibrated_index(index: Index) -> Index:
    """Return the index of the validation images that the temperature is fitted on: all, or of more
    than `CALIBRATED` that many, at even distances.
    """
    rows = np.flatnonzero(pc.equal(index.table["split"], "validation").to_numpy())
    even = np.linspace(0, len(rows) - 1, min(len(rows), CALIBRATED)).astype(np.int64)
    return replace(index, table=index.table.take(pa.array(rows[even])))


def fit_on_validation(
    network: Network, config: TrainConfig, index: Index, advance: Advance
) -> Temperature:
    """Return the temperature of a trained network, fitted on its logits for validation images.

    Without any it is 1, and says so. The network is on the CPU before and after.
    """
    chosen = calibrated_index(index)
    if not chosen.num_images():
        return Temperature(1.0, 0, reason="there are no validation images to fit it on")
    kept = _logits_of_kept_features(network, config, index)
    if kept is not None:
        advance(len(kept[1]))
        return fit_temperature(*kept)
    device = torch.device("cuda" if config.workers.use_gpu and torch.cuda.is_available() else "cpu")
    images = open_images(config, chosen, data_cpus())
    logits, truth = [], []
    try:
        for part in (network.hidden, network.head):
            part.to(device)
        with open_extractor(network, device, torch.get_num_threads()) as extract:
            for batch in images.batches("validation", batch_size=BATCH, shuffle=False):
                features = torch.from_numpy(extract(batch.images)).to(device)
                with torch.inference_mode():
                    logits.append(network.logits(features).cpu().numpy())
                truth.append(batch.labels)
                advance(len(batch))
    finally:
        network.cpu()
    return fit_temperature(np.concatenate(logits), np.concatenate(truth))


def _logits_of_kept_features(
    network: Network, config: TrainConfig, index: Index
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]] | None:
    """Return logits (N, C) and labels (N,) from the features of the validation split that the
    training of a frozen backbone has kept; None where there are none of all of it in one piece.
    """
    if config.network.freeze != "backbone":
        return None
    cache = FeatureCache(open_store(config.runs, is_patient=True).child("features"))
    key = cache.key(config, network, index, "validation", 1, 0, 1)
    with scratch_folder() as scratch:
        try:
            features = cache.load(key, scratch / "validation")
        except (DataError, StorageError):  # then they are computed anew
            return None
        with torch.inference_mode():
            logits = [network.logits(values).numpy() for values, _ in features.blocks()]
    return np.concatenate(logits), features.labels.numpy()


def calibrate(config: TrainConfig, index: Index, network: Network, console: Console) -> Temperature:
    """Return the temperature that makes the network as sure as it is right; print what it does."""
    total = min(index.num_images("validation"), CALIBRATED)
    with bar(console, "calibration", total) as advance:
        fitted = fit_on_validation(network, config, index, advance)
    if fitted.reason:
        console.print(f"[yellow]note:[/] temperature 1: {fitted.reason}", highlight=False)
    else:
        console.print(
            f"temperature {fitted.value:.3f}: calibration error (ECE) on {fitted.num_images:,} "
            f"validation images {fitted.error_before:.3f} before, {fitted.error_after:.3f} after",
            highlight=False,
        )
    return fitted


def report_on(
    config: TrainConfig, index: Index, draft: Draft, outputs: Outputs, split: str, console: Console
) -> Report:
    """Return the report that goes into the bundle: it has few pictures, so that it stays small."""
    rows = index.table.filter(pc.equal(index.table["split"], split)).take(pa.array(outputs.rows))
    few = config.export.num_report_pictures
    settings = EvaluateConfig(mistakes=few, salient=few // 2, picture_pixels=128, page_rows=50)
    made = assess(
        draft.bundle,
        first_reading(draft.manifest.classes),
        outputs,
        Seen(rows, config.data, split),
        settings,
    )
    without = "" if made.error_without is None else f"{made.error_without:.3f} before, "
    after = "" if made.error_without is None else " after"
    console.print(
        f"calibration error (ECE) on {made.num_images:,} {split} images: "
        f"{without}{made.calibration.error:.3f}{after}; a perfect model would have "
        f"{made.calibration.chance:.3f} on so many",
        highlight=False,
    )
    # Which version it will be shows when it is published. Where images and draft lie on this
    # machine is nobody's business who gets the bundle.
    source = split_uri(config.data.uri)[1] or "the images"
    return replace(made, model=draft.manifest.name, bundle="", source=source)


def calibration_figures(judged: Report, temperature: Temperature) -> dict[str, float]:
    """Return what the manifest says of calibration, and of the report's other figures."""
    found = {
        "macro_f1": judged.figures.macro_f1.value,
        "ece": judged.calibration.error,
        "ece_at_temperature_1": judged.error_without,
        "validation_ece": temperature.error_after,
        "validation_ece_at_temperature_1": temperature.error_before,
    }
    return {name: value for name, value in found.items() if value is not None}


def write_documents(draft: Draft, judged: Report, index: Index, backbone: str) -> list[Path]:
    """Write card and page into the draft's folder; return their paths."""
    card = model_card(
        draft.manifest, judged, training_section(index), about=f" Backbone `{backbone}`."
    )
    page = render_page(judged, judged.settings["page_rows"])
    texts = {draft.folder / CARD: card, draft.folder / PAGE: page}
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8", errors="replace")
    return list(texts)
