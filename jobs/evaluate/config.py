"""What an evaluation can be told: how figures are made, and how much the page shows."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from jobs.train.config import TrainConfig
from models.manifest import Name


class EvaluateConfig(BaseModel):
    """Settings of the figures and of the page. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Intervals: how many resamples of the images, drawn from which seed.
    resamples: int = Field(1000, ge=100, le=100_000)
    seed: int = Field(0, ge=0)
    # Bins of the reliability diagram and of the ECE.
    bins: int = Field(15, ge=2, le=100)
    # The share of right answers that the threshold of each label is to reach.
    precision: float = Field(0.95, gt=0, le=1)
    # The page: mistakes with a picture, how many of them with a map of what the answer depended
    # on, into how many parts a side is cut for it, and how large a picture is.
    mistakes: int = Field(24, ge=0, le=500)
    salient: int = Field(12, ge=0, le=500)
    cells: int = Field(7, ge=2, le=16)
    picture_pixels: int = Field(176, ge=32, le=512)
    # Rows of each of its tables.
    page_rows: int = Field(200, ge=1)


class EvaluateJob(TrainConfig):
    """A training configuration, of which an evaluation uses `data`, and its own settings."""

    name: Name = "evaluate"
    evaluate: EvaluateConfig = EvaluateConfig()
