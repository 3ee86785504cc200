"""What a user may say about a data set: where it is, how it is labelled, split and read.

Only settings, with their defaults and the checks that need no data. Whether the labels make sense
is found out in `sources` and `index`, which read the data.
"""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.decoders import DEFAULT_LIMITS, ImageLimits


class SplitConfig(BaseModel):
    """Shares of the images for the splits that the source does not give itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: float = Field(0.70, gt=0, le=1)
    validation: float = Field(0.15, ge=0, lt=1)
    test: float = Field(0.15, ge=0, lt=1)
    seed: int = Field(0, ge=0, lt=2**63)
    # Every class gets its shares, even a small one. Without it an image's split depends on its
    # content alone: then no image ever moves, and classes get their shares only about.
    stratify: bool = True

    @model_validator(mode="after")
    def _shares_add_up(self) -> Self:
        total = self.train + self.validation + self.test
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            raise ValueError(
                f"train + validation + test must be 1, got {self.train} + {self.validation} + "
                f"{self.test} = {total:g}"
            )
        return self


class DataConfig(BaseModel):
    """A labelled image set and how to read it. Unknown keys are refused."""

    # Class names such as 0 and 1 are numbers to YAML and names to us.
    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    source: Literal["folder", "manifest", "packed", "webdataset"] = "folder"
    uri: str = Field(min_length=1)

    # Columns of a manifest, keys of the JSON of a tar file. Those unset are used if there is one of
    # the usual name: split, group, weight, box.
    path_column: str = "path"
    label_column: str = "label"
    split_column: str | None = None
    group_column: str | None = None
    weight_column: str | None = None
    box_column: str | None = None

    # Labels: those to leave out, then new name -> old names, old name -> new name, and the order of
    # the classes (default: sorted by name), which lets in no other.
    drop: list[str] = Field(default_factory=list)
    merge: dict[str, list[str]] = Field(default_factory=dict)
    rename: dict[str, str] = Field(default_factory=dict)
    classes: list[str] | None = Field(None, min_length=2)

    # A table of images to leave out, such as the findings.parquet of an audit.
    leave_out: str | None = Field(None, min_length=1)

    split: SplitConfig = Field(default_factory=SplitConfig)
    max_broken_share: float = Field(0.05, ge=0, le=1)

    max_image_bytes: int = Field(DEFAULT_LIMITS.max_bytes, gt=0)
    max_image_pixels: int = Field(DEFAULT_LIMITS.max_pixels, gt=0)

    # Reading: the most images that one Ray task decodes, in how many threads (unset: 2 on a disk,
    # 16 on a bucket), and how many batches are kept ready ahead of the consumer.
    images_per_task: int = Field(512, ge=1, le=4096)
    read_threads: int | None = Field(None, ge=1, le=256)
    prefetch_batches: int = Field(4, ge=1, le=64)
    # How much memory decoded images may take that fine-tuning keeps for the next epochs. Unset: a
    # quarter of what is free on the machine.
    cache_gib: float | None = Field(None, ge=0)
    # What an epoch shuffles: single images, or runs of neighbours in a container, which a bucket
    # gives by one request. `auto`: runs where images lie in containers in a bucket.
    shuffle: Literal["auto", "images", "runs"] = "auto"

    @model_validator(mode="after")
    def _classes_are_distinct(self) -> Self:
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
            raise ValueError(f"classes names {', '.join(map(repr, twice))} more than once")
        return self

    @model_validator(mode="after")
    def _every_label_has_one_rule(self) -> Self:
        merged = [old for names in self.merge.values() for old in names]
        ruled = [*self.drop, *merged, *self.rename]
        twice = sorted({name for name in ruled if ruled.count(name) > 1})
        if twice:
            raise ValueError(
                f"{', '.join(map(repr, twice))} has more than one rule; expected each label once "
                "in drop, merge and rename together"
            )
        return self

    @property
    def new_names(self) -> dict[str, str]:
        """Return the new name of every label that `rename` and `merge` name."""
        merged = {old: new for new, names in self.merge.items() for old in names}
        return {**self.rename, **merged}

    @property
    def limits(self) -> ImageLimits:
        """Return the limits that decoding enforces."""
        return ImageLimits(max_bytes=self.max_image_bytes, max_pixels=self.max_image_pixels)
