"""The recipe in the loop: whatever is turned on has an effect, and a seed decides all of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jobs.data.order import balanced
from jobs.data.streams import Batch
from jobs.train.checkpoints import Checkpoints
from jobs.train.config import TrainConfig
from jobs.train.history import EpochRecord
from jobs.train.inputs import Inputs, image_size, resize
from jobs.train.loop import fit
from jobs.train.network import Network
from jobs.train.seeding import seed_step
from jobs.train.steps import WHOLE, build_average, num_updates, part_of
from jobs.train.wrapping import check_compiler
from models.errors import ConfigError
from models.storage import open_store
from tests.jobs.train.test_loop import CPU, NAMES, Notes, Shades, make_config

EVERYTHING: dict[str, Any] = {
    "epochs": 4,
    "accumulate": 2,
    "balance": "weights",
    "loss": {"kind": "focal"},
    "network": {"head_epochs": 1},
    "progressive": {"start_size": 32, "epochs": 2},
    "optimiser": {
        "lr": 0.01,
        "layer_decay": 0.8,
        "backbone_lr_scale": 1.0,
        "ema_decay": 0.9,
        "schedule": "one_cycle",
    },
    "augment": {
        "horizontal_flip": True,
        "rotate_degrees": 10,
        "crop_scale": 0.6,
        "brightness": 0.2,
        "hue": 0.1,
        "blur": 0.5,
        "randaugment_ops": 2,
        "erase": 0.3,
        "mixup_alpha": 0.4,
        "cutmix_alpha": 1.0,
    },
}


@dataclass
class Larger(Shades):
    """Shades of 64 x 64 pixels, so that they can be made smaller."""

    batch_size: int = 16

    def images(self, ids: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Batch:
        """Return the images with these numbers, each the same in any batch."""
        batches = [super(Larger, self).images(ids[k : k + 1]) for k in range(len(ids))]
        pixels = np.concatenate([batch.images for batch in batches])
        return Batch(pixels.repeat(2, axis=1).repeat(2, axis=2), ids % 2, ids)

    def num_train_batches(self, start: int = 0) -> int:
        """Return the batches of an epoch."""
        return -(-(96 - start) // self.batch_size)

    def train(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield an epoch in its own order."""
        order = np.random.default_rng(epoch).permutation(96)
        for first in range(start, 96, self.batch_size):
            yield self.images(order[first : first + self.batch_size])


def config_of(**changes: Any) -> TrainConfig:
    """Return a configuration for images of 64 x 64 pixels."""
    optimiser = {"lr": 0.02, "backbone_lr_scale": 1.0, **changes.pop("optimiser", {})}
    values = {"preprocess": {"height": 64, "width": 64}, "epochs": 2, **changes}
    return make_config(optimiser=optimiser, **values)


def small_network(*, norm: bool = True, dropout: float = 0.0) -> Network:
    """Return a very small network, the same each time."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4),
        nn.BatchNorm2d(8) if norm else nn.Identity(),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return Network(body, 8, 2, dropout)


def run(
    config: TrainConfig,
    folder: Path,
    network: Network | None = None,
    notes: Notes | None = None,
    batches: Larger | None = None,
) -> tuple[Network, list[EpochRecord]]:
    """Train and return the network at its last epoch, as the checkpoint has it."""
    network = network or small_network()
    checkpoints = Checkpoints(open_store(folder))
    history = fit(
        network,
        batches or Larger(),
        config,
        class_names=NAMES,
        class_counts=(72, 24),
        checkpoints=checkpoints,
        place=CPU,
        watcher=notes or Notes(),
    )
    last = checkpoints.load("last")
    assert last is not None
    network.load_state_dict(last["served"])
    return network, history


def differ(one: Network, other: Network) -> bool:
    """Say whether any weight differs."""
    return any(
        not torch.equal(mine, theirs)
        for mine, theirs in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """The network after a run with nothing turned on."""
    return run(config_of(), tmp_path_factory.mktemp("plain"))[0]


@pytest.mark.parametrize(
    "setting",
    [
        {"augment": {"crop_scale": 0.5}},
        {"augment": {"rotate_degrees": 20}},
        {"augment": {"blur": 0.5}},
        {"augment": {"randaugment_ops": 1}},
        {"augment": {"erase": 0.5}},
        {"augment": {"mixup_alpha": 0.4}},
        {"augment": {"cutmix_alpha": 1.0}},
        {"loss": {"kind": "focal"}},
        {"loss": {"kind": "logit_adjusted"}},
        {"balance": "weights"},
        {"optimiser": {"kind": "sgd"}},
        {"optimiser": {"schedule": "one_cycle"}},
        {"optimiser": {"schedule": "constant"}},
        {"optimiser": {"layer_decay": 0.5}},
        {"optimiser": {"label_smoothing": 0.0}},
        {"optimiser": {"weight_decay": 0.5}},
        {"optimiser": {"clip_norm": 0.01}},
        {"optimiser": {"ema_decay": 0.9}},
        {"accumulate": 3},
        {"network": {"head_epochs": 1}},
        {"progressive": {"start_size": 32, "epochs": 1}},
    ],
    ids=str,
)
def test_what_is_turned_on_has_an_effect(
    plain: Network, tmp_path: Path, setting: dict[str, Any]
) -> None:
    assert differ(run(config_of(**setting), tmp_path)[0], plain)


def test_dropout_has_an_effect(plain: Network, tmp_path: Path) -> None:
    assert differ(run(config_of(), tmp_path, small_network(dropout=0.5))[0], plain)


@pytest.fixture(scope="module")
def complete(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Network, list[EpochRecord]]:
    """The network, and the history, of a run with everything turned on."""
    folder = tmp_path_factory.mktemp("complete")
    return run(config_of(**EVERYTHING), folder, small_network(dropout=0.3))


def test_two_runs_with_everything_on_end_with_equal_weights(
    complete: tuple[Network, list[EpochRecord]], tmp_path: Path
) -> None:
    one, history = complete
    torch.rand(11)  # what was drawn before is nothing to a run
    other, other_history = run(
        config_of(**EVERYTHING), tmp_path / "other", small_network(dropout=0.3)
    )
    assert not differ(one, other)
    assert [record.train_loss for record in history] == [r.train_loss for r in other_history]
    seeded = config_of(**EVERYTHING, seed=1)
    assert differ(run(seeded, tmp_path / "seeded", small_network(dropout=0.3))[0], one)


@pytest.mark.parametrize("stop_after", [1, 3])  # where the backbone thaws; at the full size
def test_a_run_cut_anywhere_with_everything_on_ends_like_one_that_was_not(
    complete: tuple[Network, list[EpochRecord]], tmp_path: Path, stop_after: int
) -> None:
    config = config_of(**EVERYTHING)
    notes = Notes(stop_after=stop_after)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path, small_network(dropout=0.3), notes)
    assert not differ(run(config, tmp_path, small_network(dropout=0.3))[0], complete[0])


def test_what_a_step_sees_depends_on_where_it_is_and_on_nothing_else() -> None:
    inputs = Inputs(config_of(**EVERYTHING), 2)
    images = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8)
    labels = torch.arange(8) % 2

    def shown(epoch: int, step: int, rank: int) -> tuple[Tensor, Tensor]:
        return inputs(images, labels, epoch, seed_step(0, epoch, step, rank))

    first = shown(2, 5, 0)
    shown(0, 0, 0)
    assert all(torch.equal(a, b) for a, b in zip(first, shown(2, 5, 0), strict=True))
    for place in ((3, 5, 0), (2, 6, 0), (2, 5, 1)):
        assert not torch.equal(first[0], shown(*place)[0])


def test_the_moving_average_soon_forgets_where_it_began() -> None:
    network = small_network()
    average = build_average(network, 0.999)
    assert average is not None
    expected = 0.0
    for update in range(50):
        with torch.no_grad():
            network.head.weight.fill_(float(update))
        average.update_parameters(network)
        decay = min(0.999, (1 + update) / (10 + update))
        expected = float(update) if update == 0 else decay * expected + (1 - decay) * update
    found = float(average.module.head.weight.detach()[0, 0])  # type: ignore[operator,union-attr]
    assert found == pytest.approx(expected, rel=1e-4)
    assert found > 40  # with a decay of 0.999 from the beginning it would be 1.2


def test_the_parts_of_every_update_are_a_whole() -> None:
    parts = [part_of(step, 7, 3) for step in range(7)]
    assert [part.begins for part in parts] == [True, False, False] * 2 + [True]
    assert [part.ends for part in parts] == [False, False, True] * 2 + [True]
    assert [part.share for part in parts] == pytest.approx([1 / 3] * 6 + [1])
    assert num_updates(7, 3) == sum(part.ends for part in parts)
    assert all(part_of(step, 7, 1) == WHOLE for step in range(7))


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("balance", ["none", "weights"])
def test_accumulated_batches_are_one_large_batch(tmp_path: Path, kind: str, balance: str) -> None:
    optimiser = {"kind": kind, "ema_decay": 0.5}
    large, small = (
        run(
            config_of(optimiser=optimiser, accumulate=48 // size, balance=balance),
            tmp_path / str(size),
            small_network(norm=False),
            batches=Larger(batch_size=size),
        )[0]
        for size in (48, 12)
    )
    assert differ(large, small_network(norm=False))
    for name, value in large.state_dict().items():
        torch.testing.assert_close(small.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_the_last_update_of_an_epoch_may_have_fewer_batches(tmp_path: Path) -> None:
    # 96 images are 2 updates of 64 and 32: as 4 + 2 batches of 16, or as 2 + 1 of 32.
    fine, coarse = (
        run(
            config_of(accumulate=64 // size),
            tmp_path / str(size),
            small_network(norm=False),
            batches=Larger(batch_size=size),
        )[0]
        for size in (16, 32)
    )
    for name, value in fine.state_dict().items():
        torch.testing.assert_close(coarse.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_the_backbone_stands_still_until_its_epoch_comes(tmp_path: Path) -> None:
    start = small_network().backbone.state_dict()

    class Looking(Notes):
        def epoch(self, record: EpochRecord) -> None:
            super().epoch(record)
            backbones.append({k: v.clone() for k, v in network.backbone.state_dict().items()})
            heads.append(network.head.weight.detach().clone())

    backbones: list[dict[str, Tensor]] = []
    heads: list[Tensor] = []
    network = small_network()
    config = config_of(epochs=3, network={"head_epochs": 2}, optimiser={"weight_decay": 0.5})
    run(config, tmp_path / "looked", network, Looking())
    assert not torch.equal(heads[0], heads[1])
    for name, value in start.items():  # BatchNorm's statistics are among them
        assert torch.equal(backbones[0][name], value), name
        assert torch.equal(backbones[1][name], value), name
        assert not torch.equal(backbones[2][name], value), name


def test_images_grow_to_their_full_size_and_are_evaluated_at_it(tmp_path: Path) -> None:
    sizes: dict[bool, list[tuple[int, ...]]] = {True: [], False: []}
    network = small_network()

    def note(module: nn.Module, arguments: tuple[Tensor]) -> None:
        sizes[module.training].append(tuple(arguments[0].shape[1:3]))

    network.register_forward_pre_hook(note)
    run(config_of(epochs=3, progressive={"start_size": 32, "epochs": 2}), tmp_path, network)
    assert sizes[True] == [(32, 32)] * 12 + [(64, 64)] * 6
    assert set(sizes[False]) == {(64, 64)}


def test_no_run_ends_early_before_the_full_size(tmp_path: Path) -> None:
    config = config_of(
        epochs=8,
        early_stop_epochs=1,
        optimiser={"lr": 1e-12},  # no epoch is better than the first
        progressive={"start_size": 32, "epochs": 4},
    )
    assert len(run(config, tmp_path)[1]) == 4 + 2


def test_sizes_grow_in_equal_parts_by_multiples_of_32() -> None:
    config = make_config(
        preprocess={"height": 224, "width": 320},
        epochs=8,
        progressive={"start_size": 128, "epochs": 6},
    )
    sizes = [image_size(config, epoch) for epoch in range(8)]
    assert sizes == [
        (128, 192), (128, 192), (160, 224), (160, 224), (192, 288), (192, 288),
        (224, 320), (224, 320),
    ]  # fmt: skip
    assert image_size(make_config(), 0) == (32, 32)


def test_smaller_images_are_the_same_picture_without_aliasing() -> None:
    lines = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    lines[:, :, ::2] = 200
    small = resize(lines, (32, 32))
    assert (small[:, 2:-2, 2:-2].int() - 100).abs().max() <= 2
    assert resize(lines, (64, 64)) is lines


def test_a_compiler_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    check_compiler(False)
    with pytest.raises(ConfigError, match=r"C\+\+ compiler .* compile: false"):
        check_compiler(True)


@pytest.mark.slow
def test_a_compiled_run_ends_like_a_plain_one(tmp_path: Path) -> None:
    if not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        pytest.skip("torch.compile needs a C++ compiler, and there is none on the PATH")
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    # not AdamW, which makes full steps of the rounding errors where the gradient is 0
    settings = {"optimiser": {"ema_decay": 0.5, "kind": "sgd"}, "network": {"head_epochs": 1}}
    compiled, _ = run(config_of(**settings, compile=True), tmp_path / "compiled")
    assert counters["frames"]["ok"] > 0
    eager, _ = run(config_of(**settings), tmp_path / "eager")
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=1e-3, atol=1e-4)


@dataclass
class Rare(Larger):
    """Greys of which 510 are dark and 10 light, with overlapping distributions; validation has 200
    of each. Drawn evenly with `is_sampled`, by what the stream draws with.
    """

    is_sampled: bool = False

    def images(self, ids: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Batch:
        """Return the images with these numbers."""
        labels = np.where(ids < 1000, ids >= 510, ids % 2).astype(np.int64)
        rng = np.random.default_rng(7)
        own = 105 + 18 * rng.standard_normal(2000)[ids] + 45 * labels
        greys = own[:, None, None, None].repeat(32, 1).repeat(32, 2).repeat(3, 3)
        return Batch(greys.clip(0, 255).astype(np.uint8), labels, ids)

    def num_train_batches(self, start: int = 0) -> int:
        """Return the batches of an epoch."""
        return (520 - start) // 40

    def train(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield an epoch in its own order."""
        labels = (np.arange(520) >= 510).astype(np.int64)
        order = np.random.default_rng(epoch).permutation(520)
        if self.is_sampled:
            order = balanced(labels, [1.0, 1.0], epoch, seed=0)
        for first in range(start, 520, 40):
            yield self.images(order[first : first + 40])

    def validation(self) -> Iterator[Batch]:
        """Yield as many of one class as of the other."""
        yield self.images(np.arange(1000, 1400))


def recall_of_both(folder: Path, settings: dict[str, Any]) -> float:
    """Train on the rare set and return the balanced accuracy after the last epoch."""
    config = config_of(
        preprocess={"height": 32, "width": 32},
        epochs=4,
        optimiser={"label_smoothing": 0.0, "lr": 0.03},
        **settings,
    )
    history = fit(
        small_network(norm=False),
        Rare(is_sampled=config.balance == "sampling"),
        config,
        class_names=NAMES,
        class_counts=(510, 10),
        checkpoints=Checkpoints(open_store(folder)),
        place=CPU,
        watcher=Notes(),
    )
    assert history[-1].validation is not None
    return history[-1].validation["balanced_accuracy"]


@pytest.fixture(scope="module")
def unbalanced(tmp_path_factory: pytest.TempPathFactory) -> float:
    """The balanced accuracy that is reached without any balancing."""
    return recall_of_both(tmp_path_factory.mktemp("unbalanced"), {})


@pytest.mark.parametrize(
    "settings",
    [
        {"balance": "weights"},
        {"balance": "sampling"},
        {"loss": {"kind": "logit_adjusted"}},
        {"balance": "weights", "loss": {"kind": "focal"}},
        {"balance": "weights", "augment": {"mixup_alpha": 0.2}},
    ],
    ids=str,
)
def test_a_network_trained_with_balance_finds_a_class_that_is_fifty_times_rarer(
    tmp_path: Path, unbalanced: float, settings: dict[str, Any]
) -> None:
    assert recall_of_both(tmp_path, settings) > unbalanced + 0.15  # 0.84 against 0.64
