"""One training step and one evaluation step. Plain torch: no Ray, no files, no progress bar."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from jobs.train.network import Network
from jobs.train.sharding import own, whole


@dataclass(frozen=True)
class Autocast:
    """The precision of the forward pass: bfloat16 by autocast, or plain float32."""

    device_type: str
    enabled: bool

    def __call__(self) -> torch.autocast:
        return torch.autocast(self.device_type, torch.bfloat16, enabled=self.enabled)


@dataclass(frozen=True)
class Part:
    """A batch's part in an update of the weights, to which several may add their gradients."""

    share: float = 1.0  # of the update's gradient
    begins: bool = True
    ends: bool = True


WHOLE = Part()


def part_of(step: int, num_steps: int, accumulate: int) -> Part:
    """Return the part of a step, counted from 0, in an epoch of so many steps of which `accumulate`
    make one update. The last update of an epoch may have fewer, which then count more.
    """
    first = step - step % accumulate
    last = min(first + accumulate, num_steps) - 1
    return Part(1 / (last - first + 1), step == first, step == last)


def num_updates(num_steps: int, accumulate: int) -> int:
    """Return how often an epoch of so many steps updates the weights."""
    return -(-num_steps // accumulate)


@dataclass
class Skips:
    """Counts the updates that were left out since their gradient was no number. One in a while is a
    gradient whose norm was too large for a float; many in a row are a run that learns nothing.
    """

    most: int = 10  # in a row
    in_a_row: int = 0
    total: int = 0

    @property
    def are_too_many(self) -> bool:
        """Say whether nothing has been learnt for too long."""
        return self.in_a_row >= self.most

    def count(self, *, is_skipped: bool) -> None:
        """Count an update, done or left out."""
        self.in_a_row = self.in_a_row + 1 if is_skipped else 0
        self.total += is_skipped


def train_step(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    objective: nn.Module,
    optimiser: Optimizer,
    schedule: LambdaLR,
    clip_norm: float,
    autocast: Autocast,
    part: Part = WHOLE,
    skips: Skips | None = None,
) -> Tensor:
    """Add the gradient of one batch, and update the weights where it is the last part of an update:
    images (N, H, W, 3), targets that the objective takes. Returns the batch's loss, detached.

    A gradient that is not finite updates nothing and is counted in `skips`; the schedule goes on.
    It is so on all workers at once.
    """
    if part.begins:
        optimiser.zero_grad(set_to_none=True)
    with _alone(model, part):
        with autocast():
            loss: Tensor = objective(model(images), targets)
        (loss * part.share).backward()  # type: ignore[no-untyped-call]
    if part.ends:
        norm = whole(nn.utils.clip_grad_norm_(model.parameters(), clip_norm))
        is_sound = bool(torch.isfinite(norm))
        if is_sound:
            optimiser.step()
        if skips is not None:
            skips.count(is_skipped=not is_sound)
        schedule.step()
    return loss.detach()


def _alone(model: nn.Module, part: Part) -> AbstractContextManager[None]:
    """Keep the workers from exchanging gradients before the last part; that is done once."""
    no_sync: Any = getattr(model, "no_sync", None)  # a compiled model passes it through
    if part.ends or no_sync is None:
        return nullcontext()
    return cast("AbstractContextManager[None]", no_sync())


@torch.inference_mode()
def eval_step(model: nn.Module, images: Tensor, autocast: Autocast) -> Tensor:
    """Return float32 logits (N, C); the model is expected to be in eval mode."""
    with autocast():
        logits: Tensor = model(images)
    return logits.float()


def build_average(network: Network, decay: float) -> AveragedModel | None:
    """Return the exponential moving average of weights and buffers, or None when turned off.

    It begins with quicker decays, (1 + n) / (10 + n) after n updates as TensorFlow's: in a run of
    a few hundred updates the weights it began with would count to the end otherwise.
    """
    if not decay:
        return None

    def average(averaged: Any, current: Any, num_averaged: Tensor | int) -> None:
        count = int(num_averaged)
        now = min(decay, (1 + count) / (10 + count))
        blend: Any = get_ema_multi_avg_fn(now)  # type: ignore[no-untyped-call]
        # what is in parts and what is not cannot be blended in one call
        blend([own(one) for one in averaged], [own(one) for one in current], num_averaged)

    return AveragedModel(network, multi_avg_fn=average, use_buffers=True)
