"""What stands between the loop and the network: frozen or not, compiled or not, alone or one of
many.

The network itself is never replaced, so checkpoints, the moving average and evaluation do not
notice.
"""

from __future__ import annotations

import shutil
from typing import cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from jobs.train.network import Network
from jobs.train.sharding import is_sharded
from models.errors import ConfigError

COMPILERS = ("g++", "c++", "clang++", "gcc", "cc", "clang")


def wrap(network: Network, *, head_only: bool, is_compiled: bool, world: int) -> nn.Module:
    """Return what a training step calls, and set which parameters it trains.

    To be called again when `head_only` changes: `DistributedDataParallel` waits for the gradient of
    every parameter that was trained when it was made. A network in parts exchanges by itself.
    """
    network.backbone.requires_grad_(not head_only)
    is_whole = world > 1 and not is_sharded(network)
    model: nn.Module = DistributedDataParallel(network) if is_whole else network
    return cast(nn.Module, torch.compile(model)) if is_compiled else model


def set_training(model: nn.Module, network: Network, *, head_only: bool) -> None:
    """Put the model in training mode; a backbone that is not trained keeps its BatchNorm statistics
    and drops nothing.
    """
    model.train()
    if head_only:
        network.backbone.eval()


def check_compiler(is_compiled: bool) -> None:
    """Raise `ConfigError` where torch.compile is asked for and has no compiler to call."""
    if is_compiled and not any(shutil.which(name) for name in COMPILERS):
        raise ConfigError(
            f"compile: true needs a C++ compiler ({', '.join(COMPILERS[:3])}) on the PATH of every "
            "machine that trains, and there is none here; install one, or set compile: false"
        )
