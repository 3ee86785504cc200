"""Steps of several processes that torch has connected: gradients are exchanged once an update."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from jobs.train.network import Network
from jobs.train.objectives import Objective
from jobs.train.steps import Autocast, part_of, train_step
from jobs.train.wrapping import set_training, wrap

CPU = Autocast("cpu", enabled=False)


def make_network() -> Network:
    """Return a small network without batch norm, the same each time."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return Network(body, 16, 2, dropout=0.0)


def take_steps(
    network: Network, rank: int, world: int, accumulate: int, *, head_epochs: int = 0
) -> list[DistributedDataParallel | nn.Module]:
    """Take two epochs of four steps, this worker's share of batches of 8 images."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (64, 32, 32, 3), generator=generator).to(torch.uint8)
    labels = torch.randint(0, 2, (64,), generator=generator)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    schedule = LambdaLR(optimiser, lambda _: 1.0)
    share = 8 // world
    models = []
    for epoch in range(2):
        model = wrap(network, head_only=epoch < head_epochs, is_compiled=False, world=world)
        set_training(model, network, head_only=epoch < head_epochs)
        models.append(model)
        for step in range(4):
            start = (epoch * 4 + step) * 8 + rank * share
            train_step(
                model,
                images[start : start + share],
                labels[start : start + share],
                objective=Objective(),
                optimiser=optimiser,
                schedule=schedule,
                clip_norm=1.0,
                autocast=CPU,
                part=part_of(step, 4, accumulate),
            )
    return models


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """Connect this process with itself."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


def test_gradients_are_exchanged_once_an_update(group: None) -> None:
    exchanged: list[int] = []

    def count(state: object, bucket: Any) -> torch.futures.Future[torch.Tensor]:
        exchanged.append(len(exchanged))
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    count.__annotations__.clear()  # DDP compares them with types, and finds their names here
    for accumulate, expected in ((1, 4), (2, 2), (3, 2)):
        exchanged.clear()
        network = make_network()
        model = DistributedDataParallel(network)
        model.register_comm_hook(None, count)
        optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
        for step in range(4):
            train_step(
                model,
                torch.zeros(2, 32, 32, 3, dtype=torch.uint8),
                torch.tensor([0, 1]),
                objective=Objective(),
                optimiser=optimiser,
                schedule=LambdaLR(optimiser, lambda _: 1.0),
                clip_norm=1.0,
                autocast=CPU,
                part=part_of(step, 4, accumulate),
            )
        assert len(exchanged) == expected, accumulate


def _work(rank: int, folder: str, accumulate: int, head_epochs: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    network = make_network()
    models = take_steps(network, rank, 2, accumulate, head_epochs=head_epochs)
    assert all(isinstance(model, DistributedDataParallel) for model in models)
    torch.save(network.state_dict(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(("accumulate", "head_epochs"), [(1, 0), (2, 0), (3, 1)])
def test_two_workers_end_like_one_with_their_images_together(
    tmp_path: Path, accumulate: int, head_epochs: int
) -> None:
    start_processes(  # type: ignore[no-untyped-call]
        _work, (str(tmp_path), accumulate, head_epochs), nprocs=2, start_method="spawn"
    )
    alone = make_network()
    take_steps(alone, 0, 1, accumulate, head_epochs=head_epochs)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
