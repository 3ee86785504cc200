"""One training step and one evaluation step. Plain torch: no Ray, no files, no progress bar."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from jobs.train.config import OptimiserConfig
from jobs.train.network import Network


@dataclass(frozen=True)
class Autocast:
    """The precision of the forward pass: bfloat16 by autocast, or plain float32."""

    device_type: str
    enabled: bool

    def __call__(self) -> torch.autocast:
        return torch.autocast(self.device_type, torch.bfloat16, enabled=self.enabled)


def train_step(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    objective: nn.Module,
    optimiser: Optimizer,
    schedule: LambdaLR,
    clip_norm: float,
    autocast: Autocast,
) -> Tensor:
    """Update the weights on one batch: images (N, H, W, 3), labels (N,). Returns the loss,
    detached.

    A loss that is not finite updates nothing: the caller sees it and decides.
    """
    with autocast():
        loss: Tensor = objective(model(images), labels)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    if torch.isfinite(norm):
        optimiser.step()
        schedule.step()
    return loss.detach()


@torch.inference_mode()
def eval_step(model: nn.Module, images: Tensor, autocast: Autocast) -> Tensor:
    """Return float32 logits (N, C); the model is expected to be in eval mode."""
    with autocast():
        logits: Tensor = model(images)
    return logits.float()


def build_optimiser(network: Network, config: OptimiserConfig) -> AdamW:
    """Return AdamW with a slower backbone, and no decay on biases and norms."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        lr = config.lr * (config.backbone_lr_scale if name.startswith("backbone.") else 1.0)
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((lr, decay), []).append(parameter)
    return AdamW(
        [
            {"params": params, "lr": lr, "weight_decay": decay}
            for (lr, decay), params in groups.items()
        ]
    )


def build_schedule(optimiser: Optimizer, *, warmup_steps: int, total_steps: int) -> LambdaLR:
    """Return linear warm-up from near zero, then cosine decay to zero at `total_steps`."""
    return LambdaLR(optimiser, warmup_cosine(warmup_steps, total_steps))


def warmup_cosine(warmup_steps: int, total_steps: int) -> Callable[[int], float]:
    """Return the factor on the learning rate for a step counted from 0."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    return factor


def build_average(network: Network, decay: float) -> AveragedModel | None:
    """Return the exponential moving average of weights and buffers, or None when turned off."""
    if not decay:
        return None
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(network, multi_avg_fn=average, use_buffers=True)


def num_parameters(parameters: Iterable[nn.Parameter]) -> int:
    """Count the values in parameters that are trained."""
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
