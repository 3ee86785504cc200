"""What an audit can be told: every threshold, with a default that suits photos of parts.

An audit takes a training configuration as it is, since what it warns of depends on it: how the
set is split, which augmentation is on, which backbone gives the features.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from jobs.data.audit.findings import KINDS, LEAVE_OUT
from jobs.train.config import TrainConfig
from models.manifest import Name


class AuditConfig(BaseModel):
    """Thresholds of the checks. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Images of a class: fewer than the first is a warning, fewer than the second a note. The
    # largest class may have so many times the images of the smallest.
    few_images: int = Field(50, ge=1)
    enough_images: int = Field(100, ge=1)
    max_imbalance: float = Field(10.0, ge=1)

    # One image by itself. Scores of cleanvision, 0 (the worst) to 1, but the shorter side in
    # pixels; an image below the threshold is found.
    tiny_pixels: int = Field(80, ge=1)
    dark: float = Field(0.32, ge=0, le=1)
    bright: float = Field(0.05, ge=0, le=1)
    blurry: float = Field(0.29, ge=0, le=1)
    low_information: float = Field(0.3, ge=0, le=1)
    odd_aspect: float = Field(0.35, ge=0, le=1)
    odd_size: float = Field(3.0, gt=0)  # times the spread between the quartiles of the set
    odd_size_factor: float = Field(2.0, ge=1)  # and so many times larger or smaller in each side
    # Blurred: edges so many deviations less steep than the set's median, fewer where cleanvision
    # finds a blur, too, and at most so steep beside the median.
    soft_deviations: float = Field(4.0, gt=0)
    confirming_deviations: float = Field(2.0, gt=0)
    soft_edges: float = Field(0.65, gt=0, le=1)

    # A check that finds more than this share of the set says something about the camera, not about
    # images. It then finds only what is so many deviations below the set's median.
    relative_above: float = Field(0.3, gt=0, le=1)
    relative_deviations: float = Field(5.0, gt=0)

    # Near-duplicates: how alike two images must be, beside how alike images of this set are
    # anyway, and in themselves (both 0 to 1). Look-alikes that are so many and make up this share
    # of the set are compared once more, among themselves.
    near_duplicate: float = Field(0.96, gt=0, le=1)
    near_duplicate_absolute: float = Field(0.95, gt=0, le=1)
    crowd_images: int = Field(30, ge=3)
    crowd_share: float = Field(0.05, gt=0, le=1)

    # Label names: a YAML file with more lists of names that mean the same.
    synonyms: str | None = None

    # With a model: how its answers are made, and what counts as torn between two classes.
    folds: int = Field(5, ge=2, le=20)
    model_images: int = Field(50_000, ge=100)
    fit_strength: float = Field(60.0, gt=0)
    # Of the labels that cleanlab finds wrong, those less likely than this.
    wrong_below: float = Field(0.25, ge=0, le=1)
    ambiguous_margin: float = Field(0.1, ge=0, le=1)
    overlapping_share: float = Field(0.1, gt=0, le=1)

    # Findings that are not reported, and those whose images `leave_out` is set for.
    skip: list[str] = Field(default_factory=list)
    mark: list[str] = Field(default_factory=lambda: list(LEAVE_OUT))

    # The page: rows and pictures per finding.
    page_rows: int = Field(200, ge=1)
    page_pictures: int = Field(80, ge=0)
    picture_pixels: int = Field(128, ge=32, le=512)

    @field_validator("skip", "mark")
    @classmethod
    def _are_findings(cls, names: list[str]) -> list[str]:
        unknown = [name for name in names if name not in KINDS]
        if unknown:
            raise ValueError(f"no finding {', '.join(unknown)}; expected {', '.join(KINDS)}")
        return names


class AuditJob(TrainConfig):
    """A training configuration, of which an audit uses `data`, `preprocess`, `network` and
    `augment`, and the thresholds.
    """

    name: Name = "audit"
    audit: AuditConfig = AuditConfig()
