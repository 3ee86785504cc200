"""From images to a published embedding that opens, answers with unit vectors and finds classes it
was not trained on, through real Ray.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from cluster.session import Session
from jobs.data.index import build_index
from jobs.train.borders import Place
from jobs.train.config import TrainConfig
from jobs.train.embedding_run import EmbeddingOutcome, run_embedding
from jobs.train.pipeline import run_training
from jobs.train.worker import Share, open_images
from models.bundle import list_versions, open_bundle
from models.errors import ConfigError, DataError
from models.predictor import open_predictor
from models.storage import open_store
from tests.jobs.data.images import write

pytestmark = [pytest.mark.ray, pytest.mark.e2e]

SIZE = 32
TINTS = {
    "red": (90, 0, 0),
    "green": (0, 90, 0),
    "blue": (0, 0, 90),
    "yellow": (90, 90, 0),
    "pink": (90, 0, 90),
    "teal": (0, 90, 90),
}


def photo(label: str, seed: int) -> bytes:
    """Return a noisy PNG of one tint, darker or lighter."""
    rng = np.random.default_rng((seed, len(label)))
    pixels = rng.integers(0, 60, (40, 36, 3)) + rng.integers(0, 100) + np.array(TINTS[label])
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of six classes, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    for label in TINTS:
        (folder / label).mkdir()
        for i in range(20):
            (folder / label / f"{i:02}.png").write_bytes(photo(label, i))
    (folder / "red" / "text.png").write_bytes(b"not an image")
    return folder


def make_config(photos: Path, folder: Path, **changes: object) -> TrainConfig:
    """Return a configuration of a very small network."""
    values: dict[str, object] = {
        "name": "tints",
        "kind": "embedding",
        "store": str(folder / "models"),
        "runs": str(folder / "runs"),
        "run": "night",
        "data": {"uri": str(photos), "split": {"train": 0.6, "validation": 0.2, "test": 0.2}},
        "preprocess": {"height": SIZE, "width": SIZE, "resize": "stretch"},
        "network": {"backbone": "mobilenetv3_small_050", "weights": "none", "dropout": 0.0},
        "embedding": {"objective": "supcon", "size": 24, "held_out_classes": ["pink", "blue"]},
        "optimiser": {"lr": 0.003, "backbone_lr_scale": 1.0},
        "epochs": 2,
        "batch_size": 16,
        **changes,
    }
    return TrainConfig.model_validate(values)


def check_bundle(outcome: EmbeddingOutcome, folder: Path) -> None:
    """Open what was published as a replica would."""
    bundle = open_bundle(outcome.published.uri, cache=folder / "cache")
    manifest = bundle.manifest
    assert (manifest.kind, manifest.outputs.embedding, manifest.classes) == ("embedding", 24, ())
    assert {a.path for a in manifest.artifacts} >= {"model.onnx", "model_card.md", "curves.png"}
    assert "confusion.png" not in {artifact.path for artifact in manifest.artifacts}
    figures = outcome.evaluation.flat()
    assert manifest.metrics == figures
    for name in ("recall_at_1", "recall_at_5", "map_at_r"):
        for scope in ("", "backbone_", "held_out_classes_", "held_out_classes_backbone_"):
            assert 0 <= figures[scope + name] <= 1
    card = bundle.path("model_card.md").read_text()
    assert "pink" in card
    assert f"{figures['held_out_classes_recall_at_1']:.3f}" in card
    assert f"{figures['held_out_classes_backbone_recall_at_1']:.3f}" in card
    predictor = open_predictor(bundle)
    images = np.stack([predictor.prepare(photo("teal", 900 + i)) for i in range(5)])
    prediction = predictor.predict(images)
    predictor.close()
    assert prediction.probabilities is None
    assert prediction.embedding.shape == (5, 24)
    np.testing.assert_allclose(np.linalg.norm(prediction.embedding, axis=1), 1, atol=1e-3)


def test_images_become_a_bundle_of_unit_vectors_judged_by_classes_it_never_saw(
    ray_session: Session, photos: Path, tmp_path: Path
) -> None:
    network = {
        "backbone": "mobilenetv3_small_050",
        "weights": "none",
        "freeze": "backbone",
        "dropout": 0.0,
    }
    out = io.StringIO()
    config = make_config(photos, tmp_path, network=network, epochs=20)
    outcome = run_embedding(config, Console(file=out, width=120))
    check_bundle(outcome, tmp_path)
    assert outcome.index.classes == ("green", "red", "teal", "yellow")
    assert outcome.held_out is not None
    assert (
        outcome.held_out.num_images()
        == outcome.evaluation.flat()["held_out_classes_num_images"]
        == 40
    )
    assert outcome.history[-1].train_loss < outcome.history[0].train_loss
    assert "held out, never trained on: blue, pink" in out.getvalue()
    assert "backbone's features" in out.getvalue()
    trained_on = json.loads((tmp_path / "runs" / "night" / "run.json").read_text())["classes"]
    assert trained_on == ["green", "red", "teal", "yellow"]


def test_a_set_that_nothing_could_be_measured_of_is_refused_before_it_is_trained(
    ray_session: Session, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    classes = {"red": 9, "green": 9, "teal": 9}
    for split in ("train", "validation", "test"):  # of the last two one image of each class
        for name, count in classes.items():
            for number in range(count - 2 if split == "train" else 1):
                key = f"{split}/{name}/{number}.jpg"
                write(photos, {key: photo(name, 100 * len(split) + number)})
    config = make_config(photos, tmp_path, embedding={"objective": "supcon", "size": 8})
    with pytest.raises(DataError, match="no class has two test images"):
        run_embedding(config, Console(quiet=True))
    assert not (tmp_path / "runs" / "night" / "checkpoints").exists()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_whole_network_is_trained_for_vectors(
    ray_session: Session, photos: Path, tmp_path: Path, num_workers: int
) -> None:
    config = make_config(
        photos, tmp_path, workers={"num_workers": num_workers}, batch_size=16 if num_workers else 32
    )
    outcome = run_embedding(config, Console(quiet=True))
    check_bundle(outcome, tmp_path)
    assert [record.epoch for record in outcome.history] == [0, 1]
    for record in outcome.history:
        seen = (record.validation or {})["num_images"]
        assert seen == outcome.index.num_images("validation")


def test_batches_hold_several_images_of_each_class(
    ray_session: Session, photos: Path, tmp_path: Path
) -> None:
    config = make_config(photos, tmp_path)
    index = build_index(config.data, config.preprocess)
    store = open_store(tmp_path / "runs")
    share = Share(open_images(config, index), config, Place(torch.device("cpu")), store)
    batches = list(share.train(2))
    assert len(batches) == share.num_train_batches()
    for batch in batches:
        groups = batch.labels.reshape(-1, 4)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0].tolist())) > 1


def test_a_run_of_classes_refuses_the_kind(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no classes to be judged by"):
        run_training(make_config(photos, tmp_path), Console(quiet=True))
    assert list_versions(str(tmp_path / "models"), "tints") == []
