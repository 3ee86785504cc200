"""Fitting the head on cached features, and folding the standardisation away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jobs.train.borders import NotFiniteError
from jobs.train.feature_cache import FeatureCache
from jobs.train.features import Features, FeatureWriter, scratch_folder
from jobs.train.head import Standardiser, check_finite, fit_head
from jobs.train.history import EpochRecord
from jobs.train.network import Network
from jobs.train.steps import Skips
from models.errors import NotFoundError, StorageError
from models.storage import open_store
from tests.jobs.train.test_loop import make_config, make_network

NAMES = ("a", "b")


def clouds(counts: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Two overlapping Gaussian clouds of 8 features with very different scales: values, labels."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-3, 3, 8)
    labels = torch.cat([torch.full((n,), i) for i, n in enumerate(counts)])
    values = torch.randn(len(labels), 8, generator=generator) + 0.7 * (labels[:, None] * 2 - 1)
    return values * scale + 5 * scale, labels


def write(folder: Path, name: str, values: Tensor, labels: Tensor) -> Features:
    """Write features in several batches."""
    writer = FeatureWriter(folder / name)
    for start in range(0, len(labels), 100):
        writer.append(values[start : start + 100].numpy(), labels[start : start + 100])
    return writer.close()


def fit(folder: Path) -> tuple[Network, float]:
    """Fit and return the network with its accuracy on an unseen set."""
    network = make_network()
    config = make_config(
        epochs=30,
        optimiser={"lr": 0.01, "weight_decay": 0.01, "label_smoothing": 0.0},
        monitor="loss",
    )
    records: list[EpochRecord] = []
    train = write(folder, "train", *clouds((300, 300), 1))
    validation = write(folder, "validation", *clouds((300, 300), 2))
    history = fit_head(network, train, validation, config, NAMES, records.append)
    assert history == records
    unseen, labels = clouds((2000, 2000), 3)
    with torch.inference_mode():
        answers = network.head(unseen).argmax(dim=1)
    return network, float((answers == labels).float().mean())


def test_features_in_a_file_are_read_by_rows_and_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.train.features.BLOCK", 128)
    values, labels = clouds((200, 150), 0)
    features = write(tmp_path, "features", values, labels)
    assert (len(features), features.num_features) == (350, 8)
    ids = torch.tensor([349, 0, 7, 7])
    with features.open_rows() as rows:
        torch.testing.assert_close(rows(ids), values[ids])
    blocks = list(features.blocks())
    assert [len(block) for block, _ in blocks] == [128, 128, 94]
    torch.testing.assert_close(torch.cat([block for block, _ in blocks]), values)
    torch.testing.assert_close(torch.cat([block for _, block in blocks]), labels)
    mean, std = features.moments()
    torch.testing.assert_close(mean, values.mean(dim=0))
    torch.testing.assert_close(std, values.std(dim=0))


@pytest.mark.parametrize("damage", ["truncated values", "truncated labels", "changed byte"])
def test_damaged_cached_features_are_computed_again(tmp_path: Path, damage: str) -> None:
    values, labels = clouds((20, 20), 0)
    made: list[Features] = []

    def compute() -> Features:
        made.append(write(tmp_path, f"scratch-{len(made)}", values, labels))
        return made[-1]

    cache = FeatureCache(open_store(tmp_path / "cache"))
    cache.get("key", tmp_path / "first", compute, expected=40, partial="part")
    _, stored = cache.get("key", tmp_path / "second", compute, expected=40, partial="part")
    assert len(made) == 1
    with stored.open_rows() as rows:
        torch.testing.assert_close(rows(torch.arange(40)), values)
    spoilt = tmp_path / "cache" / ("key.npz" if "labels" in damage else "key.f32")
    content = bytearray(spoilt.read_bytes())
    content[len(content) // 2] ^= 1
    spoilt.write_bytes(content if "changed" in damage else content[: len(content) // 2])
    _, again = cache.get("key", tmp_path / "third", compute, expected=40, partial="part")
    assert len(made) == 2
    torch.testing.assert_close(again.labels, labels)
    assert len(cache.load("key", tmp_path / "fourth")) == 40


def test_a_full_disk_is_named_with_what_to_do() -> None:
    with pytest.raises(StorageError, match="Set TMPDIR"), scratch_folder():
        FeatureWriter(Path("/dev/full")).append(np.zeros((64, 1280), np.float32), torch.zeros(64))


def test_a_share_with_images_missing_is_not_there_for_other_runs(tmp_path: Path) -> None:
    values, labels = clouds((20, 20), 0)
    cache = FeatureCache(open_store(tmp_path / "cache"))
    made: list[int] = []

    def compute() -> Features:
        made.append(1)
        return write(tmp_path, "scratch", values, labels)

    for number in range(2):
        part = f"key-run-{number}"
        stored_as, _ = cache.get("key", tmp_path / "x", compute, expected=41, partial=part)
        assert stored_as == part
        assert len(cache.load(part, tmp_path / "y")) == 40
    assert len(made) == 2
    with pytest.raises(NotFoundError):
        cache.load("key", tmp_path / "z")


def test_features_of_any_scale_are_separated(tmp_path: Path) -> None:
    _, accuracy = fit(tmp_path)
    assert accuracy > 0.95  # the optimum of these clouds is 0.976


WAYS: dict[str, dict[str, Any]] = {
    "weights": {"balance": "weights"},
    "sampling": {"balance": "sampling"},
    "logit-adjusted": {"loss": {"kind": "logit_adjusted"}},
    # not by itself, see docs/training.md
    "focal with weights": {"balance": "weights", "loss": {"kind": "focal"}},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_balancing_helps_a_class_that_is_fifty_times_rarer(
    tmp_path: Path, way: str, smoothing: float
) -> None:
    plain = balanced_accuracy(tmp_path / "plain", smoothing, {})
    balanced = balanced_accuracy(tmp_path / "balanced", smoothing, WAYS[way])
    assert plain < 0.7
    assert balanced > plain + 0.2


def balanced_accuracy(folder: Path, smoothing: float, settings: dict[str, Any]) -> float:
    """Fit on 1,600 and 32 images to the last epoch and return the mean recall of both classes on
    unseen ones.
    """
    folder.mkdir()
    network = make_network()
    optimiser = {"lr": 0.01, "weight_decay": 0.01, "label_smoothing": smoothing}
    config = make_config(epochs=20, optimiser=optimiser, **settings)
    train = write(folder, "train", *clouds((1600, 32), 1))
    validation = FeatureWriter(folder / "validation").close()  # none: choosing an epoch balances
    fit_head(network, train, validation, config, NAMES, lambda _: None)
    unseen, labels = clouds((2000, 2000), 3)
    with torch.inference_mode():
        answers = network.head(unseen).argmax(dim=1)
    return float((answers == labels).float().mean())


@pytest.mark.parametrize(
    "settings",
    [
        {"optimiser": {"kind": "sgd", "lr": 0.5}},
        {"optimiser": {"schedule": "one_cycle"}},
        {"loss": {"kind": "focal"}},
    ],
    ids=str,
)
def test_the_head_is_fitted_by_the_same_recipe(tmp_path: Path, settings: dict[str, Any]) -> None:
    heads = []
    for name, changes in (("plain", {}), ("changed", settings)):
        (tmp_path / name).mkdir()
        network = make_network()
        train = write(tmp_path / name, "train", *clouds((300, 300), 1))
        validation = write(tmp_path / name, "validation", *clouds((300, 300), 2))
        config = make_config(epochs=5, monitor="loss", **changes)
        fit_head(network, train, validation, config, NAMES, lambda _: None)
        heads.append(network.head.weight.detach())
        unseen, labels = clouds((2000, 2000), 3)
        with torch.inference_mode():
            answers = network.head(unseen).argmax(dim=1)
        assert float((answers == labels).float().mean()) > 0.9
    assert not torch.equal(*heads)


def test_a_hidden_layer_learns_what_no_line_can_part(tmp_path: Path) -> None:
    found = []
    for units in (0, 16):
        (tmp_path / str(units)).mkdir()
        values, labels = corners(600, 1)
        train = write(tmp_path / str(units), "train", values, labels)
        validation = write(tmp_path / str(units), "validation", *corners(200, 2))
        network = Network(make_network().backbone, 2, 2, 0.0, hidden_units=units)
        config = make_config(
            epochs=40,
            network={"hidden_units": units, "dropout": 0.0},
            optimiser={"lr": 0.02, "weight_decay": 0.0},
        )
        fit_head(network, train, validation, config, NAMES, lambda _: None)
        unseen, truth = corners(1000, 3)
        with torch.inference_mode():
            answers = network.eval().logits(unseen).argmax(dim=1)
        found.append(float((answers == truth).float().mean()))
    without, with_hidden = found
    assert without < 0.75
    assert with_hidden > 0.95


def corners(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points around the corners of a square, those across from each other of one class, on scales
    that are far apart.
    """
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (count, 2), generator=generator) * 2 - 1
    values = signs + 0.2 * torch.randn(count, 2, generator=generator)
    return values * torch.tensor([0.01, 100.0]) + 3, (signs.prod(dim=1) > 0).long()


def test_the_folded_layer_does_what_standardising_first_did() -> None:
    torch.manual_seed(0)
    features, _ = clouds((50, 50), 0)
    standard = Standardiser(features.mean(dim=0), features.std(dim=0))
    linear, folded = torch.nn.Linear(8, 2), torch.nn.Linear(8, 2)
    standard.fold(linear, folded)
    torch.testing.assert_close(folded(features), linear(standard(features)), rtol=1e-4, atol=1e-4)


def test_moments_count_images_by_their_weights(tmp_path: Path) -> None:
    values, labels = clouds((50, 50), 1)
    thrice = write(tmp_path, "thrice", values.repeat(3, 1), labels.repeat(3))
    writer = FeatureWriter(tmp_path / "weighted")
    # The last hundred are not to be seen, so they move nothing.
    strange = torch.full_like(values, 1e6)
    weights = torch.cat([torch.full((100,), 3.0), torch.zeros(100)])
    writer.append(torch.cat([values, strange]).numpy(), labels.repeat(2), weights)
    for found, expected in zip(writer.close().moments(), thrice.moments(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-5)


def test_images_of_weight_0_teach_nothing(tmp_path: Path) -> None:
    values, labels = clouds((300, 300), 1)
    is_wrong = torch.arange(600) % 2 == 0  # half of the labels, which would leave pure chance
    taught = torch.where(is_wrong, 1 - labels, labels)
    network = make_network()
    config = make_config(epochs=20, monitor="loss", optimiser={"lr": 0.01, "weight_decay": 0.01})
    writer = FeatureWriter(tmp_path / "train")
    writer.append(values.numpy(), taught, torch.where(is_wrong, 0.0, 1.0))
    validation = write(tmp_path, "validation", *clouds((300, 300), 2))
    fit_head(network, writer.close(), validation, config, NAMES, lambda _: None)
    unseen, truth = clouds((2000, 2000), 3)
    with torch.inference_mode():
        answers = network.head(unseen).argmax(dim=1)
    assert float((answers == truth).float().mean()) > 0.9


def test_features_that_never_moved_in_training_do_not_count_when_they_do(tmp_path: Path) -> None:
    """Divided by the smallest deviation, they drowned all others in a hidden layer."""
    values, labels = corners(300, 1)
    still = torch.zeros(300, 4)
    train = write(tmp_path, "train", torch.cat([values, still], dim=1), labels)
    validation = FeatureWriter(tmp_path / "validation").close()
    network = Network(make_network().backbone, 6, 2, 0.0, hidden_units=16)
    config = make_config(
        epochs=40,
        network={"hidden_units": 16, "dropout": 0.0},
        optimiser={"lr": 0.02, "weight_decay": 0.0},
    )
    fit_head(network, train, validation, config, NAMES, lambda _: None)
    unseen, truth = corners(1000, 3)
    moved = torch.rand(1000, 4, generator=torch.Generator().manual_seed(4)) * 0.05
    with torch.inference_mode():
        answers = network.eval().logits(torch.cat([unseen, moved], dim=1)).argmax(dim=1)
    assert float((answers == truth).float().mean()) > 0.9


def test_an_epoch_without_one_sound_gradient_ends_the_fit() -> None:
    losses, config = [torch.tensor(0.5)] * 3, make_config()
    check_finite(losses, Skips(in_a_row=2), 0, config)
    with pytest.raises(NotFiniteError, match=r"in any step of epoch 1; lower optimiser\.lr"):
        check_finite(losses, Skips(in_a_row=3), 0, config)


def test_a_loss_that_is_no_number_ends_the_fit(tmp_path: Path) -> None:
    train = write(tmp_path, "train", *clouds((30, 30), 1))
    validation = FeatureWriter(tmp_path / "validation").close()
    config = make_config(epochs=5, optimiser={"kind": "sgd", "lr": 1e38})
    with pytest.raises(NotFiniteError, match=r"in epoch \d, step \d+; lower optimiser.lr \(now 1e"):
        fit_head(make_network(), train, validation, config, NAMES, lambda _: None)
