"""The section `embedding` of a training: how the kind `embedding` learns, and which classes it is
judged by without having seen them.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MARGINS = {"arcface": 0.5, "cosface": 0.35}  # unless set: those of the papers, as is the scale
SCALE = 64.0
MAX_MARGIN = {"arcface": math.pi / 2, "cosface": 1.0}  # beyond, no angle would be good enough


class EmbeddingConfig(BaseModel):
    """One projection of the pooled features, and the objective that it is trained by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(128, ge=2, le=4096)  # numbers in a vector
    norm: Literal["none", "batch"] = "none"  # between the projection and unit length
    # `arcface`, `cosface`: cosine soft-max with a margin; `supcon`: supervised contrastive
    objective: Literal["arcface", "cosface", "supcon"] = "arcface"
    # of arcface in radians (0.5 unless set), of cosface in cosine (0.35 unless set)
    margin: float | None = Field(None, ge=0)
    scale: float | None = Field(None, gt=0, le=256)  # of arcface and cosface: 64 unless set
    temperature: float | None = Field(None, gt=0, le=10)  # of supcon alone: 0.1 unless set
    images_per_class: int = Field(4, ge=2, le=256)  # of supcon: so many of a class come together
    # names, or a share of the classes: never trained on, all their images are for the figures
    held_out_classes: tuple[str, ...] | Annotated[float, Field(ge=0, lt=1)] = ()

    @property
    def has_class_weights(self) -> bool:
        """Whether the objective learns a direction for each class, which needs no pairs."""
        return self.objective != "supcon"

    @property
    def used_margin(self) -> float:
        """The margin of a cosine soft-max."""
        return MARGINS[self.objective] if self.margin is None else self.margin

    @property
    def used_scale(self) -> float:
        """What a cosine soft-max multiplies its cosines by."""
        return SCALE if self.scale is None else self.scale

    @property
    def used_temperature(self) -> float:
        """What the contrastive objective divides its cosines by."""
        return 0.1 if self.temperature is None else self.temperature

    @field_validator("held_out_classes")
    @classmethod
    def _names_once(cls, given: tuple[str, ...] | float) -> tuple[str, ...] | float:
        if isinstance(given, float):
            return given
        twice = sorted({name for name in given if given.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(map(repr, twice))} is named twice; name each class once")
        return given

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> EmbeddingConfig:
        foreign = ("temperature",) if self.has_class_weights else ("margin", "scale")
        for name in foreign:
            if getattr(self, name) is not None:
                owner = "supcon" if self.has_class_weights else "arcface or cosface"
                raise ValueError(
                    f"embedding.{name} belongs to embedding.objective: {owner}; set that "
                    "objective, or remove it"
                )
        if self.margin is not None and self.margin >= MAX_MARGIN[self.objective]:
            raise ValueError(
                f"embedding.margin {self.margin:g} of {self.objective} must be below "
                f"{MAX_MARGIN[self.objective]:.3g}; 0.1 to 0.5 is usual"
            )
        return self
