"""What a training run can be told. One YAML file in `configs/train/`, overridden by `key=value` on
the command line.

Unknown keys and contradictions are refused before anything is read or started.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from jobs.data.config import DataConfig
from jobs.data.transforms import AugmentConfig
from jobs.train.embedding_config import EmbeddingConfig
from jobs.train.learning_config import (
    NO_FILES,
    LossConfig,
    NetworkConfig,
    OptimiserConfig,
    ProgressiveConfig,
    Section,
)
from jobs.train.workers_config import WorkersConfig
from models.manifest import Name
from models.preprocess import PreprocessSpec
from models.storage import is_remote

OF_CLASSES = ("accuracy", "balanced_accuracy", "loss")  # what a run of each kind can monitor
OF_VECTORS = ("recall_at_1", "recall_at_5", "map_at_r")
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class CheckpointConfig(Section):
    """When the state is written beside the training, and how many are kept.

    The end of each epoch is one always; these come in mid-epoch, whatever is due first.
    """

    every_steps: int | None = Field(None, ge=1)
    every_seconds: float | None = Field(60.0, gt=0)
    keep: int = Field(2, ge=1)  # besides the best; two, so that there is one before a damaged one


class TrackingConfig(Section):
    """What is written down of a run's course: metrics.jsonl in its folder always, and more."""

    every_steps: int = Field(10, ge=1)  # a line of metrics.jsonl, besides one per epoch
    # which images every step of every worker was given: true in the run's folder, or where to
    sample_ids: bool | str = False
    mlflow_uri: str | None = None  # an MLflow server or folder; needs the extra `tracking`


class ExportConfig(Section):
    """What the bundle holds, and how close every artifact has to come to the trained network."""

    num_reference_images: int = Field(16, ge=1, le=256)
    num_report_pictures: int = Field(12, ge=0, le=100)  # of mistakes, in the bundle's report
    probability_tolerance: float = Field(0.02, gt=0, le=1)
    cosine_tolerance: float = Field(0.99, gt=0, le=1)


class TrainConfig(Section):
    """A whole run."""

    name: Name  # of the model, as it will stand in its URL
    # `dynamic`: its labels can be renamed, merged and hidden while it serves; `embedding`: it
    # answers with a vector, and `embedding` below says how that is learnt
    kind: Literal["generic", "dynamic", "embedding"] = "generic"
    store: str = ".sightline/models"  # bundles are published here
    runs: str = ".sightline/runs"  # checkpoints, quarantine, curves
    run: str | None = None  # name a run to be able to resume it; a new name is made otherwise
    seed: int = Field(0, ge=0, lt=2**32)
    data: DataConfig
    preprocess: PreprocessSpec = PreprocessSpec()
    network: NetworkConfig = NetworkConfig()
    augment: AugmentConfig = AugmentConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    loss: LossConfig = LossConfig()
    progressive: ProgressiveConfig | None = None
    embedding: EmbeddingConfig | None = None  # of kind `embedding`, and only of it
    workers: WorkersConfig = WorkersConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    export: ExportConfig = ExportConfig()
    epochs: int = Field(12, ge=1)
    batch_size: int = Field(64, ge=2)  # per worker
    accumulate: int = Field(1, ge=1)  # so many batches make one update of the weights
    # weigh the loss, or draw rare classes more often
    balance: Literal["none", "weights", "sampling"] = "none"
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on a GPU, fp32 on a CPU
    compile: bool = False  # torch.compile: minutes to begin with, then quicker steps
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
        if self.embedding is not None and self.loss != LossConfig():
            raise ValueError(
                "the section loss is of the kinds that tell classes apart; kind: embedding has "
                "embedding.objective"
            )
        if self.embedding is not None and self.network.features == "stages":
            raise ValueError(
                "network.features: stages is of the kinds that tell classes apart: in a vector the "
                "largest of its numbers would drown the others; set network.features: pooled"
            )
        if self.embedding is not None and self.network.hidden_units:
            raise ValueError(
                "network.hidden_units is of the kinds that tell classes apart, and kind: embedding "
                "projects the features by one layer; set network.hidden_units: 0"
            )
        if self.embedding is not None and self.augment.is_mixing:
            raise ValueError(
                "augment.mixup_alpha and augment.cutmix_alpha mix images, and kind: embedding "
                "learns from whole ones; set both to 0"
            )
        if (group := self.images_per_class) is None:
            return self
        if self.balance == "weights":
            raise ValueError(
                "balance: weights weighs a soft-max over classes, which embedding.objective: "
                "supcon has not; set balance: sampling"
            )
        is_cut = self.batch_size % group or self.batch_size < 2 * group
        if self.network.freeze == "none" and is_cut:
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
        if self.loss.kind == "logit_adjusted" and self.balance != "none":
            raise ValueError(
                f"loss.kind: logit_adjusted and balance: {self.balance} both make up for rare "
                "classes, together twice over; set balance: none, or another loss.kind"
            )
        self._check_epochs()
        self._check_shard()
        if self.run is not None and (not RUN_NAME.fullmatch(self.run) or self.run == "features"):
            raise ValueError(
                f"run {self.run!r} must be a name of letters, digits, '.', '_' and '-' that begins "
                "with a letter or a digit, and not 'features', where the feature cache is"
            )
        return self

    def _check_shard(self) -> None:
        """Refuse to split what is not trained, or not as it is written."""
        if not self.workers.shard:
            return
        if self.network.freeze == "backbone":
            raise ValueError(
                "workers.shard: true splits a network that is trained, and network.freeze: "
                "backbone fits the head only, which is small; set workers.shard: false, or "
                "network.freeze: none"
            )
        if self.compile:
            raise ValueError(
                "compile: true and workers.shard: true do not go together; set workers.shard: "
                "false where the network fits on every worker, compile: false where it does not"
            )

    def _check_epochs(self) -> None:
        """Refuse parts of a run that are longer than the run."""
        warmup = self.optimiser.warmup_epochs
        if warmup is not None and warmup > self.epochs:
            raise ValueError(
                f"optimiser.warmup_epochs {warmup:g} is longer than the run of {self.epochs} "
                "epochs; lower it, or raise epochs"
            )
        if self.network.head_epochs >= self.epochs:
            raise ValueError(
                f"network.head_epochs {self.network.head_epochs} leaves none of {self.epochs} "
                "epochs for the backbone; lower it, raise epochs, or set network.freeze: backbone, "
                "which is far quicker"
            )
        if self.progressive is None:
            return
        if self.progressive.epochs >= self.epochs:
            raise ValueError(
                f"progressive.epochs {self.progressive.epochs} leaves none of {self.epochs} epochs "
                "for the full size, which has to come last; lower it, or raise epochs"
            )
        shorter = min(self.preprocess.height, self.preprocess.width)
        if self.progressive.start_size >= shorter:
            raise ValueError(
                f"progressive.start_size {self.progressive.start_size} is not smaller than the "
                f"input of {self.preprocess.height} x {self.preprocess.width}; lower it, or leave "
                "progressive out"
            )


def written_by(config: TrainConfig) -> dict[str, str]:
    """Return where a run reads and writes, by setting."""
    places = {"store": config.store, "runs": config.runs, "data.uri": config.data.uri}
    tracking = config.tracking
    if tracking.mlflow_uri is not None:
        places["tracking.mlflow_uri"] = tracking.mlflow_uri
    if isinstance(tracking.sample_ids, str):
        places["tracking.sample_ids"] = tracking.sample_ids
    return places


def with_absolute_paths(config: TrainConfig, folder: Path) -> TrainConfig:
    """Return it with every local path below `folder` where it is relative: Ray Train's workers have
    a working directory of their own.
    """

    def placed(uri: str) -> str:
        if is_remote(uri) or uri.startswith("file://"):
            return uri
        return str(folder / Path(uri).expanduser())

    weights, tracking = config.network.weights, config.tracking
    if weights not in NO_FILES:
        weights = placed(weights)
    places: dict[str, object] = {}
    if tracking.mlflow_uri is not None and not tracking.mlflow_uri.startswith("databricks"):
        places["mlflow_uri"] = placed(tracking.mlflow_uri)
    if isinstance(tracking.sample_ids, str):
        places["sample_ids"] = placed(tracking.sample_ids)
    return config.model_copy(
        update={
            "runs": placed(config.runs),
            "store": placed(config.store),
            "network": config.network.model_copy(update={"weights": weights}),
            "tracking": tracking.model_copy(update=places),
        }
    )
