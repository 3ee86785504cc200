"""What each epoch of a run gave, and which epoch was the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.train.config import TrainConfig


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch, counted from 0. `validation` is None where there are no validation
    images.
    """

    epoch: int
    train_loss: float
    validation: dict[str, float] | None
    images_per_second: float = 0.0
    waiting_share: float = 0.0  # of the epoch's time, spent waiting for data


def score(record: EpochRecord, monitor: str) -> float:
    """Return the monitored figure as larger-is-better; minus infinity without validation."""
    if record.validation is None:
        return float("-inf")
    value = record.validation[monitor]
    return -value if monitor == "loss" else value


def is_better(record: EpochRecord, history: Sequence[EpochRecord], monitor: str) -> bool:
    """Say whether a record beats all earlier ones; without validation the latest always does."""
    if record.validation is None:
        return True
    return all(score(record, monitor) > score(earlier, monitor) for earlier in history)


def best_epoch(history: Sequence[EpochRecord], monitor: str) -> int:
    """Return the position of the first best record; the last one without validation."""
    if not history or history[-1].validation is None:
        return len(history) - 1
    return max(range(len(history)), key=lambda i: (score(history[i], monitor), -i))


def growing_epochs(config: TrainConfig) -> int:
    """Return how many epochs are on images below the full size; features are of the full size."""
    is_frozen = config.network.freeze == "backbone"
    return 0 if is_frozen or config.progressive is None else config.progressive.epochs


def should_stop(history: Sequence[EpochRecord], config: TrainConfig) -> bool:
    """Say whether the last `early_stop_epochs` epochs all failed to beat the best before them.

    Epochs on images below the full size do not count: what is better there may be worse at first.
    """
    patience, whole = config.early_stop_epochs, history[growing_epochs(config) :]
    if patience is None or not whole:
        return False
    return len(whole) - 1 - best_epoch(whole, config.monitor) >= patience


def describe(record: EpochRecord) -> str:
    """Return one line on an epoch."""
    figures = "  ".join(
        f"{k} {v:.4f}" for k, v in (record.validation or {}).items() if k != "num_images"
    )
    speed = f"  {record.images_per_second:.0f} images/s" if record.images_per_second else ""
    waiting = f"  waiting {record.waiting_share:.0%}" if record.images_per_second else ""
    return (
        f"epoch {record.epoch + 1}: train loss {record.train_loss:.4f}  {figures}{speed}{waiting}"
    )
