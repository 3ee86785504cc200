"""What a search for settings can be told: one YAML file in `configs/tune/`, overridden by
`key=value` on the command line.

It says nothing about the training itself: that is the file `base`, whose settings are overridden by
`train.key=value`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from jobs.train.config import RUN_NAME

LONGEST_NAME = 90  # the runs of trials have a number behind it


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Parameter(_Section):
    """Which values of a setting are tried: exactly one of these."""

    choice: list[Any] | None = Field(None, min_length=1)
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    int_range: tuple[int, int] | None = None  # with both ends

    @model_validator(mode="after")
    def _is_one_range(self) -> Self:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of {', '.join(KINDS)}, not {' and '.join(given) or 'none'}"
            )
        (kind,) = given
        if kind == "choice":
            return self
        low, high = getattr(self, kind)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"the range [{low}, {high}] must be finite and rise")
        if kind == "loguniform" and low <= 0:
            raise ValueError(f"a logarithmic range begins above 0, not at {low}")
        return self

    def value(self, share: float) -> Any:
        """Return the value at a share of the range, 0 to just below 1. Floats have four digits, so
        that they can be written down.
        """
        if self.choice is not None:
            return self.choice[int(share * len(self.choice))]
        if self.int_range is not None:
            low, high = self.int_range
            return low + int(share * (high - low + 1))
        if self.loguniform is not None:
            low_log, high_log = (math.log(end) for end in self.loguniform)
            return float(f"{math.exp(low_log + share * (high_log - low_log)):.4g}")
        assert self.uniform is not None
        low_end, high_end = self.uniform
        return float(f"{low_end + share * (high_end - low_end):.4g}")

    @property
    def is_fixed(self) -> bool:
        """Whether there is one value only."""
        return self.choice is not None and len(self.choice) == 1

    def examples(self) -> list[Any]:
        """Return values that must be valid: all choices, or the ends of the range."""
        return list(self.choice or self.uniform or self.loguniform or self.int_range or ())


KINDS = tuple(Parameter.model_fields)


class AshaConfig(_Section):
    """When a trial is given up: asynchronous successive halving (Li et al. 2018, arXiv
    1810.05934).
    """

    enabled: bool = True
    grace_epochs: int = Field(2, ge=1)  # no trial is stopped before
    # Of those that come to a rung, 1 in so many goes on; rungs are at grace_epochs times powers of
    # it.
    reduction: float = Field(3, gt=1)


class LrTestConfig(_Section):
    """The learning-rate range test (Smith 2017, arXiv 1506.01186)."""

    start: float = Field(1e-6, gt=0)
    end: float = Field(10.0, gt=0)
    steps: int = Field(200, ge=20)
    # of the moving average: each step counts this much of the ones before it
    smoothing: float = Field(0.9, ge=0, lt=1)
    # it has diverged where the smoothed loss is so many times the lowest, or above the first
    diverged: float = Field(4.0, gt=1)

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.start >= self.end:
            raise ValueError(f"lr_test.start {self.start:g} must be below its end {self.end:g}")
        return self


class TuneConfig(_Section):
    """A whole search."""

    name: str  # of the sweep: the same name again goes on with it
    base: str  # the training configuration that trials differ from, as configs/train/fast.yaml
    # By dotted names of the training's settings, as optimiser.lr; several that are to be the same
    # with commas between them, as preprocess.height, preprocess.width
    space: dict[str, Parameter] = Field(default_factory=dict)
    trials: int = Field(16, ge=1, le=9999)
    seed: int = Field(0, ge=0)
    concurrent: int | None = Field(None, ge=1)  # trials at once; as many as there is room for
    asha: AshaConfig = AshaConfig()
    retry_failed: bool = False  # try again what failed when the sweep was run before
    publish: bool = True  # the best trial, as a bundle
    lr_test: LrTestConfig = LrTestConfig()

    @field_validator("name")
    @classmethod
    def _is_a_run_name(cls, name: str) -> str:
        if not RUN_NAME.fullmatch(name) or len(name) > LONGEST_NAME or name == "features":
            raise ValueError(
                f"must be a name of at most {LONGEST_NAME} letters, digits, '.', '_' and '-' that "
                "begins with a letter or a digit, and not 'features', where the feature cache is"
            )
        return name

    @field_validator("space", mode="before")
    @classmethod
    def _with_dotted_names(cls, space: object) -> object:
        """Take sections apart, which `space.optimiser.lr=...` makes on the command line; a plain
        value is the only choice.
        """
        if not isinstance(space, Mapping):
            return space
        return {
            name: value if isinstance(value, Mapping | Parameter) else {"choice": [value]}
            for name, value in _dotted(space)
        }


def _dotted(section: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in section.items():
        is_section = isinstance(value, Mapping) and value and not _is_parameter(value)
        found += _dotted(value, f"{prefix}{name}.") if is_section else [(f"{prefix}{name}", value)]
    return found


def _is_parameter(value: Mapping[str, Any]) -> bool:
    """Say whether this is a range, also a mistyped one, rather than settings below a section."""
    return any(name in KINDS or isinstance(inner, list) for name, inner in value.items())
