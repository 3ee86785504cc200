"""Training of kind `embedding`: on cached features and of the whole network, judged by classes that
it has not seen.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.data.streams import Batch
from jobs.train.borders import Place
from jobs.train.config import TrainConfig
from jobs.train.embedding_network import EmbeddingNetwork, ServedEmbedding, fit_to_kind, project
from jobs.train.features import Features, FeatureWriter
from jobs.train.history import EpochRecord
from jobs.train.loop import fit
from jobs.train.metric_learning import CosineSoftmax
from jobs.train.network import Network
from jobs.train.projection import fit_projection
from jobs.train.retrieval import retrieve
from jobs.train.worker import open_checkpoints
from tests.jobs.train.test_loop import Notes

CPU = Place(torch.device("cpu"))
OBJECTIVES = ["arcface", "cosface", "supcon"]
TRAINED, HELD_OUT = range(6), range(6, 10)
NAMES = tuple("abcdef")


def make_config(folder: Path, objective: str = "arcface", **changes: object) -> TrainConfig:
    """Return a small configuration."""
    values: dict[str, object] = {
        "name": "points",
        "kind": "embedding",
        "runs": str(folder),
        "data": {"uri": "unused"},
        "preprocess": {"height": 16, "width": 16},
        "network": {"dropout": 0.0},
        "embedding": {"objective": objective, "size": 8},
        "optimiser": {"lr": 0.03, "backbone_lr_scale": 1.0, "weight_decay": 0.0},
        "epochs": 40,  # on cached features of one step each
        "batch_size": 32,
    }
    return TrainConfig.model_validate({**values, **changes})


def points(classes: range, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return features (N, 24) with labels: six of them say the class, the others are louder
    and say nothing. Centres of classes are the same for every seed.
    """
    centres = torch.randn(10, 6, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([label for label in classes for _ in range(count)])
    said = centres[labels] + 0.3 * torch.randn(len(labels), 6, generator=generator)
    loud = 1.5 * torch.randn(len(labels), 18, generator=generator)
    return torch.cat([said, loud], dim=1) + 2, labels


def write(folder: Path, name: str, values: Tensor, labels: Tensor) -> Features:
    writer = FeatureWriter(folder / name)
    writer.append(values.numpy(), labels)
    return writer.close()


def make_network(config: TrainConfig, backbone: nn.Module, num_features: int) -> EmbeddingNetwork:
    torch.manual_seed(0)
    made = fit_to_kind(Network(backbone, num_features, 2, 0.0), config, len(NAMES))
    assert isinstance(made, EmbeddingNetwork)
    return made


def recall(vectors: Tensor, labels: Tensor) -> float:
    found = retrieve(functional.normalize(vectors, dim=1), labels)
    assert found is not None
    return found.recall_at_1


def fit_points(folder: Path, config: TrainConfig) -> tuple[EmbeddingNetwork, list[EpochRecord]]:
    network = make_network(config, nn.Identity(), 24)
    before = copy.deepcopy(network.objective.state_dict())
    told: list[EpochRecord] = []
    history = fit_projection(
        network,
        write(folder, "train", *points(TRAINED, 60, 1)),
        write(folder, "validation", *points(TRAINED, 20, 2)),
        config,
        NAMES,
        told.append,
    )
    assert history == told
    for name, value in network.objective.state_dict().items():  # directions of arcface and cosface
        assert not torch.equal(value, before[name])
    return network.eval(), history


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_projection_finds_classes_that_it_was_not_trained_on(
    tmp_path: Path, objective: str
) -> None:
    network, history = fit_points(tmp_path, make_config(tmp_path, objective))
    unseen, labels = points(HELD_OUT, 40, 3)
    with torch.inference_mode():
        vectors = project(unseen, network.head, network.norm)
    assert recall(unseen, labels) < 0.6
    assert recall(vectors, labels) > 0.8
    first, last = history[0].validation, history[-1].validation
    assert first is not None
    assert last is not None
    assert last["recall_at_1"] > 0.9
    assert last["num_images"] == 120


def test_the_same_seed_gives_the_same_projection_and_another_one_another(tmp_path: Path) -> None:
    results = [
        fit_points(tmp_path, make_config(tmp_path, "supcon", epochs=2, seed=seed))[0].head.weight
        for seed in (1, 1, 2)
    ]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("balance", ["weights", "sampling"])
def test_balance_helps_a_rare_class(tmp_path: Path, balance: str) -> None:
    values, labels = points(TRAINED, 60, 1)
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[3:60] = False  # three images of the first class
    shares = []
    for how in ("none", balance):
        config = make_config(tmp_path, balance=how, epochs=30)
        network = make_network(config, nn.Identity(), 24)
        train = write(tmp_path, how, values[kept], labels[kept])
        none = FeatureWriter(tmp_path / "empty").close()  # so the last epoch is kept
        fit_projection(network, train, none, config, NAMES, lambda record: None)
        objective = network.objective
        assert isinstance(objective, CosineSoftmax)
        of_class, _ = points(range(1), 40, 5)
        with torch.inference_mode():
            directions = functional.normalize(objective.weight, dim=1)
            cosines = project(of_class, network.head, network.norm) @ directions.T
        shares.append(float(cosines[:, 0].mean()))
    assert shares[1] > shares[0] + 0.05


def test_with_a_norm_the_projection_is_folded_as_well(tmp_path: Path) -> None:
    section = {"size": 8, "norm": "batch"}
    network, history = fit_points(tmp_path, make_config(tmp_path, embedding=section))
    values, labels = points(TRAINED, 20, 2)
    with torch.inference_mode():
        vectors = project(values, network.head, network.norm)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(labels)))
    best = max(record.validation["recall_at_1"] for record in history if record.validation)
    assert recall(vectors, labels) == pytest.approx(best, abs=0.02)


class Tints:
    """Images of six tints, 16 x 16, whose brightness says nothing."""

    def images(self, labels: np.ndarray[tuple[int], np.dtype[np.int64]], seed: int) -> Batch:
        rng = np.random.default_rng(seed)
        angles = labels * np.pi / 3 + rng.normal(0, 0.2, len(labels))
        tint = np.stack([np.cos(angles), np.sin(angles), -np.cos(angles)], axis=1) * 25
        light = rng.uniform(60, 190, (len(labels), 1))
        noise = rng.normal(0, 20, (len(labels), 16, 16, 3))
        pixels = np.clip((light + tint)[:, None, None] + noise, 0, 255)
        return Batch(pixels.astype(np.uint8), labels, np.arange(len(labels)))

    def num_train_batches(self, start: int = 0) -> int:
        return 8

    def train(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for step in range(8):
            labels = np.random.default_rng((epoch, step)).permutation(np.arange(32) % 6)
            yield self.images(labels.astype(np.int64), 100 * epoch + step)

    def validation(self) -> Iterator[Batch]:
        for step in range(3):
            yield self.images(np.arange(40, dtype=np.int64) % 6, 10_000 + step)


def body() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, stride=4),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


@pytest.mark.parametrize("objective", ["arcface", "supcon"])
def test_the_whole_network_learns_and_so_do_class_directions(
    tmp_path: Path, objective: str
) -> None:
    config = make_config(tmp_path, objective, epochs=3)
    network = make_network(config, body(), 16)
    before = copy.deepcopy(network.objective.state_dict())
    start = validate(network)
    history = fit(
        network,
        Tints(),
        config,
        class_names=NAMES,
        class_counts=[50.0] * 6,
        checkpoints=open_checkpoints(config, "run"),
        place=CPU,
        watcher=Notes(),
    )
    assert history[-1].validation is not None
    assert history[-1].validation["num_images"] == 120
    assert max(r.validation["recall_at_1"] for r in history if r.validation) > start + 0.1
    kept = open_checkpoints(config, "run").load("best")
    assert kept is not None
    for name, value in before.items():  # arcface and cosface
        assert not torch.equal(value, kept["served"][f"objective.{name}"])


def validate(network: EmbeddingNetwork) -> float:
    batches = list(Tints().validation())
    images = torch.from_numpy(np.concatenate([batch.images for batch in batches]))
    labels = torch.from_numpy(np.concatenate([batch.labels for batch in batches]))
    with torch.inference_mode():
        return recall(network.eval()(images), labels)


def test_what_is_served_is_the_projection_at_unit_length_without_the_objective(
    tmp_path: Path,
) -> None:
    config = make_config(tmp_path, embedding={"size": 8, "norm": "batch"})
    network = make_network(config, body(), 16).eval()
    network.set_normalisation((0.4, 0.5, 0.6), (0.2, 0.2, 0.2))
    images = torch.from_numpy(next(Tints().validation()).images)
    served = ServedEmbedding(network).eval()
    with torch.inference_mode():
        vectors = served(images)
        torch.testing.assert_close(vectors, network(images))
    assert vectors.shape == (40, 8)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(40))
    assert not [name for name in served.state_dict() if "objective" in name]
    assert any("objective" in name for name in network.state_dict())


def test_the_loader_of_checkpoints_gets_a_network_of_the_same_shape(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    saved = make_network(config, body(), 16).state_dict()
    make_network(config, body(), 16).load_state_dict(saved)
