"""How a trained network is calibrated, and what that costs the proof of its engines."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from cluster.session import Session
from jobs.data.index import Index, build_index
from jobs.data.transforms import Augmentation
from jobs.train.config import ExportConfig, TrainConfig
from jobs.train.feature_cache import FeatureCache
from jobs.train.features import Features, compute_features, open_extractor, scratch_folder
from jobs.train.judge import CALIBRATED, calibrate, calibrated_index
from jobs.train.learning_config import NetworkConfig
from jobs.train.network import Network
from jobs.train.pipeline import tolerance_of
from jobs.train.worker import open_images
from models.storage import open_store
from tests.jobs.data.images import write
from tests.jobs.evaluate.answers import index_rows

SIZE = 16


def network() -> Network:
    """A network of mean colours: features of an image are three numbers."""
    return Network(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 3, 2, dropout=0.0)


def grey(number: int, level: int) -> bytes:
    """Return a JPEG of a grey with a little noise, so that no two are the same."""
    noise = np.random.default_rng(number).integers(-20, 21, (SIZE, SIZE, 3))
    buffer = io.BytesIO()
    Image.fromarray((level + noise).astype(np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def config(folder: Path) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "name": "caps",
            "runs": str(folder.parent / "runs"),
            "data": {"uri": str(folder), "split": {"train": 0.5, "validation": 0.5, "test": 0}},
            "preprocess": {"height": SIZE, "width": SIZE},
        }
    )


def test_an_engine_may_stray_further_where_the_temperature_makes_more_of_it() -> None:
    export = ExportConfig()
    assert tolerance_of(export, 1.0).probability == export.probability_tolerance
    assert tolerance_of(export, 2.0).probability == export.probability_tolerance
    assert tolerance_of(export, 0.5).probability == 2 * export.probability_tolerance
    assert tolerance_of(export, 0.001).probability == 1.0
    assert tolerance_of(export, 0.5).cosine == export.cosine_tolerance


def test_without_validation_images_the_temperature_is_1_and_that_is_said(tmp_path: Path) -> None:
    rows = index_rows(["a.jpg", "b.jpg"], split=["train", "test"], label=[0, 1])
    shown = io.StringIO()
    console = Console(file=shown, width=200)
    fitted = calibrate(config(tmp_path), Index(rows, ("good", "torn")), network(), console)
    assert fitted.value == 1.0
    assert "there are no validation images" in shown.getvalue()


def test_of_very_many_validation_images_some_are_asked_from_all_over_the_set() -> None:
    count = 3 * CALIBRATED
    paths = [f"{number:06}.jpg" for number in range(count)]
    rows = index_rows(paths, split=["validation", "train", "validation"] * CALIBRATED)
    chosen = calibrated_index(Index(rows, ("good", "torn"))).table
    assert len(chosen) == CALIBRATED
    assert set(chosen["split"].to_pylist()) == {"validation"}
    assert (chosen["path"][0].as_py(), chosen["path"][-1].as_py()) == (paths[0], paths[-1])


@pytest.mark.ray
@pytest.mark.slow
def test_a_network_that_is_too_sure_is_cooled_and_stays_as_it_was(
    ray_session: Session, tmp_path: Path
) -> None:
    for number in range(160):
        is_bright = number % 2 == 0
        is_right = number % 8 > 1  # three labels in four
        name = "good" if is_bright == is_right else "torn"
        write(tmp_path / "set" / name, {f"{number}.jpg": grey(number, 200 if is_bright else 55)})
    settings = config(tmp_path / "set")
    index = build_index(settings.data, settings.preprocess)
    sure = network()
    with torch.no_grad():
        sure.head.weight.copy_(torch.tensor([[2.0, 2.0, 2.0], [-2.0, -2.0, -2.0]]))
        sure.head.bias.zero_()
    before = {name: value.clone() for name, value in sure.state_dict().items()}
    shown = io.StringIO()
    fitted = calibrate(settings, index, sure, Console(file=shown, width=200))
    assert fitted.num_images == index.num_images("validation")
    # It says 12 times 0.57 in log-odds where 3 to 1 is true.
    assert fitted.value == pytest.approx(12 * 0.57 / np.log(3), rel=0.35)
    assert fitted.error_before is not None
    assert fitted.error_after is not None
    assert fitted.error_before > 0.15
    assert fitted.error_after < 0.05
    assert f"temperature {fitted.value:.3f}" in shown.getvalue()
    for name, value in sure.state_dict().items():
        assert torch.equal(value, before[name]), name
    kept = settings.model_copy(update={"network": NetworkConfig(freeze="backbone")})
    keep_features(kept, index, sure)
    shutil.rmtree(tmp_path / "set")  # the features of a frozen backbone are not computed again
    again = calibrate(kept, index, sure, Console(file=io.StringIO()))
    assert again.value == pytest.approx(fitted.value, rel=1e-3)
    inside = NetworkConfig(freeze="backbone", features="stages")
    read = kept.model_copy(update={"network": inside})  # whose features are others
    cache = FeatureCache(open_store(kept.runs).child("features"))
    keys = {cache.key(config, sure, index, "train", 1, 0, 1) for config in (kept, read)}
    assert len(keys) == 2


def keep_features(config: TrainConfig, index: Index, network: Network) -> None:
    """Keep the features of the validation split, as the training of a frozen backbone does."""
    cache = FeatureCache(open_store(config.runs).child("features"))
    key = cache.key(config, network, index, "validation", 1, 0, 1)
    with scratch_folder() as scratch, open_extractor(network, torch.device("cpu"), 1) as extract:
        path = scratch / "validation"

        def compute() -> Features:
            return compute_features(
                open_images(config, index).batches("validation", batch_size=8, shuffle=False),
                extract,
                Augmentation(config.augment),
                path,
                num_views=1,
                seed=0,
                advance=lambda count: None,
            )

        cache.get(key, path, compute, expected=index.num_images("validation"), partial="part")
