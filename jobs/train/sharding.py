"""A network in parts: each worker keeps a part of all weights, gradients, moments and averages, and
computes on images of its own (FSDP, torch's `fully_shard`; Zhao et al. 2023, arXiv 2304.11277).

A block's weights are brought together before it computes and dropped after it. So every worker has
to take part in every forward pass, one that has no images left too, and in putting a state together
for a checkpoint. What is in parts is a `DTensor`; everything here leaves other tensors as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from jobs.train.network import Network
from jobs.train.optimisers import number_layers
from models.errors import ConfigError

Item = TypeVar("Item")

SMALLEST = 0.01  # of all weights: what is less is not worth a message of its own


def shard(network: Network, device: torch.device) -> None:
    """Split the network over all workers, block by block, and put this worker's parts on its
    device. Optimisers and copies of the network cannot be of before and after.
    """
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    # torch would keep what is outside of all blocks together until the backward pass.
    for module in (*find_blocks(network), network):
        module.register_forward_hook(_no_view)
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def _no_view(module: nn.Module, inputs: object, output: Any) -> Any:
    """Return a block's output in memory of its own: where the next one changes a view in place,
    torch forgets to bring the block's weights together again for the backward pass.
    """
    if isinstance(output, Tensor) and output._is_view():
        return output.clone()
    return output


def check_divisible(network: Network) -> None:
    """Raise `ConfigError` for a network with weights that torch cannot split: single numbers."""
    single = [name for name, weight in network.named_parameters() if weight.ndim == 0]
    if single:
        raise ConfigError(
            f"workers.shard: true cannot split this network.backbone: {len(single)} of its weights "
            f"are single numbers ({single[0]}), which torch does not split; set workers.shard: "
            "false, or take another backbone"
        )


def is_sharded(module: nn.Module) -> bool:
    """Say whether a module was split by `shard`."""
    return isinstance(module, FSDPModule)


def find_blocks(network: Network) -> list[nn.Module]:
    """Return the modules that come together one after the other: the largest that hold weights of
    one layer of the backbone only, as the optimiser counts layers, and an objective with weights of
    its own, which is called outside of the network. The rest is one more, with the network itself.
    """
    numbers = number_layers(network.backbone)
    layers = {weight: numbers[name] for name, weight in network.backbone.named_parameters()}
    least = SMALLEST * _count(network)
    blocks = [block for block in _of_one_layer(network.backbone, layers) if _count(block) >= least]
    objective = getattr(network, "objective", None)
    return [*blocks, objective] if objective is not None and _count(objective) else blocks


def _of_one_layer(module: nn.Module, layers: Mapping[nn.Parameter, int]) -> Iterator[nn.Module]:
    for child in module.children():
        is_called = not isinstance(child, nn.ModuleList | nn.ModuleDict)
        if is_called and len({layers[weight] for weight in child.parameters()}) == 1:
            yield child
        else:
            yield from _of_one_layer(child, layers)


def _count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def whole(value: Tensor) -> Tensor:
    """Return a tensor that is in parts together, for which every worker has to ask."""
    together: Tensor = value.full_tensor() if isinstance(value, DTensor) else value
    return together


def own(value: Tensor) -> Tensor:
    """Return this worker's part of a tensor; a change of it is one of the tensor."""
    mine: Tensor = value.to_local() if isinstance(value, DTensor) else value
    return mine


def split_like(value: Tensor, example: Any) -> Tensor:
    """Return this worker's part of what every worker has whole, if the example is in parts."""
    if not isinstance(example, DTensor) or value.shape != example.shape:
        return value
    parts: Tensor = distribute_tensor(
        value, example.device_mesh, example.placements, src_data_rank=None
    )
    return parts.clone()  # or the whole would stay in memory behind it


def load_whole(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a module's state of which every worker has the whole."""
    examples = module.state_dict()
    module.load_state_dict(
        {name: split_like(value, examples.get(name)) for name, value in state.items()}
    )


# Of an optimiser's groups. Fused is not possible everywhere.
CONFIGURED = ("fused", "momentum", "nesterov")


def load_whole_optimiser(optimiser: Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimiser's state of which every worker has the whole. What is `CONFIGURED` stays as
    it is.
    """
    weights = [one for group in optimiser.param_groups for one in group["params"]]
    moments = {
        number: {name: _laid_out(value, weights[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    groups = [
        {**saved, **{name: mine[name] for name in CONFIGURED if name in mine}}
        for saved, mine in zip(state["param_groups"], optimiser.param_groups, strict=True)
    ]
    optimiser.load_state_dict({"state": moments, "param_groups": groups})


@torch.no_grad()
def _laid_out(value: Any, weight: Tensor) -> Any:
    """Return a moment as its weight lies in memory (channels_last where it is whole, contiguous in
    parts): what is fused takes both in the order of memory, whatever their strides.
    """
    if not isinstance(value, Tensor) or value.shape != weight.shape:
        return value
    return torch.empty_like(weight, dtype=value.dtype).copy_(split_like(value, weight))


@torch.no_grad()
def share_buffers(module: nn.Module) -> None:
    """Give every worker the first one's buffers, batch norm's statistics, which each has of its own
    images. One message for those of a type, since a network may have hundreds.
    """
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for buffer in module.buffers():
        by_type.setdefault(buffer.dtype, []).append(buffer)
    for buffers in by_type.values():
        together = torch.cat([buffer.reshape(-1) for buffer in buffers])
        distributed.broadcast(together, 0)
        parts = torch.split(together, [buffer.numel() for buffer in buffers])
        for buffer, part in zip(buffers, parts, strict=True):
            buffer.copy_(part.view_as(buffer))


def first_says(is_wanted: bool, device: torch.device) -> bool:
    """Return what the first worker says, to all."""
    said = torch.tensor(int(is_wanted), device=device)
    distributed.broadcast(said, 0)
    return bool(said)


def in_step(items: Iterable[Item], device: torch.device) -> Iterator[Item | None]:
    """Yield what there is as long as any worker has something, and None where this one has not."""
    source = iter(items)
    while True:
        item = next(source, None)
        has_any = torch.tensor(int(item is not None), device=device)
        distributed.all_reduce(has_any, distributed.ReduceOp.MAX)
        if not has_any:
            return
        yield item
