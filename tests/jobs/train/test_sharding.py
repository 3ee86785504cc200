"""A network in parts on two workers trains as a whole one on each does, in half of the memory, and
its checkpoints are those of a whole one.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import start_processes

from jobs.train.checkpoints import Checkpoints
from jobs.train.network import build_network
from jobs.train.sharding import find_blocks, load_whole_optimiser
from jobs.train.worker import prepare_network
from models.errors import ConfigError
from models.storage import open_store
from tests.jobs.train.shards import CUT, RUNS, make_run, train, work
from tests.jobs.train.test_loop import CPU, make_config, run

pytestmark = pytest.mark.timeout(900)  # the first waits for all runs
slow = pytest.mark.slow
LEARNT = ("network", "served", "num_averaged", "optimiser", "schedule")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left of all runs."""
    path = tmp_path_factory.mktemp("shards")
    start_processes(work, (str(path),), nprocs=2, start_method="spawn")  # type: ignore[no-untyped-call]
    return path


def found(folder: Path) -> list[dict[Any, Any]]:
    """Return what each of the workers saw."""
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def last(folder: Path) -> dict[str, Any]:
    """Return the last state of a run, without the seconds that it took and what was fused."""
    state = Checkpoints(open_store(folder)).load("last")
    assert state is not None
    for group in state["optimiser"]["param_groups"]:
        del group["fused"]
    return {name: state[name] for name in LEARNT} | {"step": state["tally"]["step"]}


def assert_same(one: Any, other: Any, noise: float = 2e-3) -> None:
    """Compare states, however deep: the same names, tensors that differ by noise."""
    if isinstance(one, torch.Tensor):
        assert one.shape == other.shape
        difference = (one.double() - other.double()).norm()
        assert difference <= noise * other.double().norm() + 1e-6
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_same(one[name], other[name], noise)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs, noise)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=noise, abs=1e-6)
    else:
        assert one == other


@slow
@pytest.mark.parametrize("name", RUNS)
def test_parts_learn_what_the_whole_learns(folder: Path, name: str) -> None:
    noise = 2e-2 if "bfloat16" in name else 2e-3
    for worker in found(folder):
        whole, parts = (worker[f"{name} {shard}"] for shard in (False, True))
        assert len(set(whole[0])) == 8
        assert_same(parts, whole, noise)
    whole, parts = (last(folder / name / str(shard)) for shard in (False, True))
    assert_same(parts, whole, noise)


@slow
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_a_run_goes_on_in_mid_epoch_in_parts_or_not(
    folder: Path, before: bool, after: bool
) -> None:
    cut = Checkpoints(open_store(folder / "cut" / str(before))).find("last")
    assert cut is not None
    assert (cut.next_epoch, cut.next_step) == (0, 2)
    assert CUT == 3
    whole = last(folder / "AdamW and stochastic depth" / "False")
    assert_same(last(folder / "cut" / f"{before} {after}"), whole)


@slow
def test_one_worker_goes_on_from_parts_as_from_the_whole(folder: Path, tmp_path: Path) -> None:
    ends = []
    for shard in (False, True):
        shutil.copytree(folder / "cut" / str(shard), tmp_path / str(shard))
        losses, _ = train(tmp_path / str(shard), make_run(shard=True), CPU)
        assert len(losses) == 4 + 8  # of 8 images each, where two workers took 16
        ends.append((losses, last(tmp_path / str(shard))))
    assert_same(ends[1], ends[0])


@slow
def test_a_checkpoint_of_parts_is_one_of_the_whole(folder: Path) -> None:
    """Parts that were written with what they are parts of would show in the bytes of the file."""
    whole, parts = (
        Checkpoints(open_store(folder / "AdamW and stochastic depth" / str(shard))).find("last")
        for shard in (False, True)
    )
    assert whole is not None
    assert parts is not None
    assert parts.bytes == pytest.approx(whole.bytes, rel=0.01)


@slow
def test_a_worker_holds_half_of_everything_and_little_more_while_it_computes(folder: Path) -> None:
    held = [worker["bytes"] for worker in found(folder)]
    whole = held[0][False]
    weights = whole["weights"]
    assert whole["gradients"] == whole["average"] == whole["while computing"] == weights
    assert whole["moments"] == 2 * weights
    for name in ("weights", "gradients", "moments", "average"):
        parts = [worker[True][name] for worker in held]
        assert sum(parts) == whole[name]
        assert max(parts) < 0.52 * whole[name], name
    assert max(worker[True]["while computing"] for worker in held) < 0.6 * weights


def test_a_group_of_one_has_nobody_to_split_with(tmp_path: Path) -> None:
    config = make_config(workers={"num_workers": [1, 2], "shard": True}, epochs=1)
    network, history = run(config, tmp_path)
    assert len(history) == 1
    assert all(type(weight) is torch.nn.Parameter for weight in network.parameters())


def test_whether_an_optimiser_is_fused_is_no_part_of_what_it_goes_on_with() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    fused, plain = (torch.optim.SGD([weight], 0.1, 0.9, fused=is_so) for is_so in (True, False))
    weight.sum().backward()  # type: ignore[no-untyped-call]
    fused.step()
    load_whole_optimiser(plain, fused.state_dict())
    assert plain.param_groups[0]["fused"] is False
    assert torch.equal(plain.state[weight]["momentum_buffer"], torch.ones(3))


@slow
def test_a_network_that_cannot_be_split_is_refused_by_name_before_it_trains() -> None:
    network = {"backbone": "dm_nfnet_f0", "weights": "none"}
    workers = {"num_workers": 2, "shard": True}
    with pytest.raises(
        ConfigError, match=r"single numbers \(backbone\.stages.*workers\.shard: false"
    ):
        prepare_network(make_config(network=network, workers=workers), 2)
    prepare_network(make_config(network=network, workers={"num_workers": 2}), 2)


@pytest.mark.parametrize(
    ("backbone", "names"),
    [
        ("resnet18", {f"layer{stage}.{block}" for stage in range(2, 5) for block in range(2)}),
        ("vit_tiny_patch16_224", {f"blocks.{block}" for block in range(12)}),
        ("convnext_atto", {"stages.2.blocks.5", "stages.3.blocks.0", "stages.3.downsample"}),
        ("tf_efficientnet_lite0", {"blocks.5.3", "blocks.6", "conv_head"}),
    ],
)
def test_blocks_are_those_of_the_backbone(backbone: str, names: set[str]) -> None:
    network = build_network(backbone, 2)
    paths = {module: name for name, module in network.backbone.named_modules()}
    blocks = find_blocks(network)
    assert names <= {paths[block] for block in blocks}
    split = [weight for block in blocks for weight in block.parameters()]
    assert len(split) == len(set(split)), "no weight in two of them"
    assert sum(map(torch.numel, split)) > 0.9 * sum(map(torch.numel, network.parameters()))
