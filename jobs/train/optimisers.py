"""AdamW or SGD, with a learning rate for each depth of the network.

The head has the full rate, the backbone `backbone_lr_scale` of it, and with `layer_decay` every
layer less than the one after it (layer-wise decay as in BEiT, arXiv 2106.08254). Where a layer
begins and ends is what timm says of its backbones; of others, every module with weights is one.

The groups depend on the network and on whether there is a `layer_decay` at all, never on the rates,
so a run may go on with other rates.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import SGD, AdamW, Optimizer

from jobs.train.learning_config import OptimiserConfig
from jobs.train.network import Network

HEAD = -1  # its number among the layers: the backbone's are counted from 0, the first, upwards


def build_optimiser(network: Network, config: OptimiserConfig) -> Optimizer:
    """Return the optimiser of a whole network, with no decay on biases and norms."""
    is_by_layer = config.layer_decay < 1
    layers = number_layers(network.backbone) if is_by_layer else {}
    deepest = max(layers.values(), default=0)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            own = name.removeprefix("backbone.")
            layer = layers.get(own, deepest) if own != name else HEAD
            groups.setdefault((layer, parameter.ndim > 1), []).append(parameter)
    return make_optimiser(
        (
            {
                "params": parameters,
                "lr": config.lr * _scale(layer, deepest, config),
                "weight_decay": config.weight_decay if is_decayed else 0.0,
            }
            for (layer, is_decayed), parameters in groups.items()
        ),
        config,
    )


def decayed_apart(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return groups of all parameters of a module, with no decay on biases and norms."""
    groups: dict[bool, list[nn.Parameter]] = {}
    for parameter in module.parameters():
        groups.setdefault(parameter.ndim > 1, []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if is_decayed else 0.0}
        for is_decayed, parameters in groups.items()
    ]


def make_optimiser(groups: Iterable[dict[str, Any]], config: OptimiserConfig) -> Optimizer:
    """Return the configured optimiser for groups of parameters, each with its rate and decay.

    Fused: all parameters of a group in one call, on a CPU in half of the time of torch's own choice
    there, which is one call after the other (213 parameters of EfficientNet-Lite0). For a network
    in parts torch 2.15 has only AdamW so.
    """
    if config.kind == "adamw":
        return AdamW(groups, lr=config.lr, fused=True)
    groups = [{**group, "params": list(group["params"])} for group in groups]
    is_whole = not any(isinstance(one, DTensor) for group in groups for one in group["params"])
    return SGD(
        groups,
        lr=config.lr,
        momentum=config.sgd_momentum,
        nesterov=config.is_nesterov,
        fused=is_whole,
    )


def number_layers(backbone: nn.Module) -> dict[str, int]:
    """Return the layer of each parameter, counted from 0 at the input."""
    matcher = getattr(backbone, "group_matcher", None)
    if matcher is not None:
        from timm.models import group_parameters

        layers: dict[str, int] = group_parameters(backbone, matcher(coarse=False), reverse=True)
        return layers
    numbers: dict[str, int] = {}  # of modules, in the order of their definition
    return {
        name: numbers.setdefault(name.rpartition(".")[0], len(numbers))
        for name, _ in backbone.named_parameters()
    }


def _scale(layer: int, deepest: int, config: OptimiserConfig) -> float:
    """Return the share of the full rate that a layer gets."""
    if layer == HEAD:
        return 1.0
    # with layer_decay the last layer of the backbone is already one step below the head
    depth = deepest - layer + 1 if config.layer_decay < 1 else 0
    return config.backbone_lr_scale * config.layer_decay**depth
