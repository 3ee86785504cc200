"""How much memory a worker may fill with images, and memory that ran out, told with the setting to
lower: on a GPU, in the training process, or on a node whose memory Ray guards by killing processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.environment import free_bytes
from jobs.causes import walk
from jobs.train.config import TrainConfig
from models.errors import SightlineError

# What torch and CUDA say where they raise no class of their own.
WORDS = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")

FREE_SHARE = 0.25  # of the memory that is free, for decoded images


def cache_bytes(config: TrainConfig) -> int:
    """Return how many bytes of decoded images this worker may keep: its part of what its machine
    has for them. A frozen backbone sees each image once, so none is kept for it.
    """
    if config.network.freeze == "backbone":
        return 0
    given = config.data.cache_gib
    of_machine = free_bytes() * FREE_SHARE if given is None else given * (1 << 30)
    return int(of_machine / int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # as torchrun counts


class OutOfMemoryError(SightlineError):
    """There was not enough memory for the configured sizes."""

    code = "out_of_memory"


@contextmanager
def explained_shortage(config: TrainConfig) -> Iterator[None]:
    """Raise `OutOfMemoryError` with advice instead of what torch, Python or Ray raise when memory
    runs out, however deep in other errors that is.
    """
    try:
        yield
    except OutOfMemoryError:
        raise
    except Exception as error:  # of torch, Python or Ray, and what is none of these goes on
        for cause in walk(error):
            advice = _advice(cause, config)
            if advice is not None:
                first = (str(cause).splitlines() or [type(cause).__name__])[0]
                raise OutOfMemoryError(
                    f"{advice}, and run again. {_going_on(config)}. What was said: {first[:300]}"
                ) from error
        raise


def _advice(error: BaseException, config: TrainConfig) -> str | None:
    is_frozen = config.network.freeze == "backbone"  # features come in batches of a fixed size
    size = f"preprocess.height and .width (now {config.preprocess.height} x "
    size += f"{config.preprocess.width})"
    batch = "" if is_frozen else f"batch_size (now {config.batch_size})"
    if type(error).__module__.startswith("ray.") and type(error).__name__ == "OutOfMemoryError":
        of_steps = "" if is_frozen else f"data.cache_gib (now {_cache(config)}), {batch}, "
        return (
            "the memory of a node ran out and Ray ended a process there; lower "
            f"data.images_per_task (now {config.data.images_per_task}), data.prefetch_batches "
            f"(now {config.data.prefetch_batches}), {of_steps}{size} "
            f"or the number of workers on a node (workers.num_workers is {config.workers.most})"
            f"{'' if config.workers.shard else _parts(config)}"
        )
    is_told = isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS)
    if is_told or isinstance(error, MemoryError) or _is_torchs(error):
        on_gpu = config.workers.use_gpu and not isinstance(error, MemoryError)
        where = "of the GPU" if on_gpu else "of the training process"
        bf16 = "" if is_frozen or config.precision == "bf16" else ", set precision: bf16"
        sizes = size if is_frozen else f"{batch} or {size}"
        return (
            f"the memory {where} ran out; lower {sizes}{bf16}{_parts(config)}, or take a smaller "
            f"network.backbone than {config.network.backbone}"
        )
    return None


def _going_on(config: TrainConfig) -> str:
    """Return which changes the same `run` allows."""
    if config.network.freeze == "backbone":
        return "Another size or backbone needs another `run`"
    return (
        "With the same `run` it goes on from the last checkpoint; another batch_size, size or "
        "backbone needs another `run`"
    )


def _cache(config: TrainConfig) -> str:
    given = config.data.cache_gib
    return "a quarter of what is free" if given is None else f"{given:g}"


def _parts(config: TrainConfig) -> str:
    """Return what splitting the network could do, where several workers train all of it."""
    if config.workers.most < 2 or config.network.freeze == "backbone":
        return ""
    if config.workers.shard:
        return ", take more workers, which hold smaller parts of the network each"
    return ", set workers.shard: true, with which each worker holds a part of the network"


def _is_torchs(error: BaseException) -> bool:
    # by name: torch need not be loaded to look
    return type(error).__name__ == "OutOfMemoryError" and type(error).__module__ in (
        "torch",
        "torch.cuda",
    )
