"""A copy of a run's state in the CPU's memory, which is written while the next steps change the
state itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from jobs.train.checkpoints import State
from jobs.train.sharding import whole


def copy_to_cpu(state: State, *, is_kept: bool = True) -> State:
    """Return a state of its own. Tensors that are one stay one.

    What is in parts on several workers comes together, one tensor after the other, for which every
    worker has to call this; those that do not keep the copy get an empty one.
    """
    copies: dict[object, torch.Tensor] = {}

    def copied(value: Any) -> Any:
        if isinstance(value, DTensor):
            # By the object, since a worker's part may have no address: all workers have to ask for
            # the same tensors.
            if id(value) not in copies:
                together = whole(value)
                copies[id(value)] = together.to("cpu", copy=True) if is_kept else value
            return copies[id(value)]
        if isinstance(value, torch.Tensor):
            key = (value.data_ptr(), value.shape, value.stride(), value.dtype)
            if not value.numel() or key not in copies:
                copies[key] = value.detach().to("cpu", copy=True)
            return copies[key]
        if isinstance(value, Mapping):
            return {name: copied(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(copied(item) for item in value)
        return value

    result: State = copied(state)
    return result if is_kept else {}
