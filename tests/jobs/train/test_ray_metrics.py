"""What Ray's metrics are told of a training."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from jobs.train.borders import Status
from jobs.train.ray_metrics import RayGauges


@dataclass
class Recorded:
    """Stands for one of Ray's gauges."""

    tag_keys: tuple[str, ...]
    tags: dict[str, str] = field(default_factory=dict)
    values: list[float] = field(default_factory=list)

    def set_default_tags(self, tags: dict[str, str]) -> None:
        """Keep them."""
        self.tags = tags

    def set(self, value: float) -> None:
        """Keep it."""
        self.values.append(value)


def test_ray_is_told_how_a_run_stands_by_names_that_are_documented(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: dict[str, Recorded] = {}

    def make(name: str, description: str, tag_keys: tuple[str, ...]) -> Recorded:
        assert description
        return made.setdefault(name, Recorded(tag_keys))

    monkeypatch.setattr("ray.util.metrics.Gauge", make)
    gauges = RayGauges("caps", "night")
    gauges.show(Status(0, 8, 100, float("nan"), 50.0, 0.0))  # features: no loss yet
    gauges.show(Status(1, 16, 100, 0.25, 100.0, 0.5))
    assert {name: gauge.values for name, gauge in made.items()} == {
        "sightline_train_loss": [0.25],
        "sightline_train_images_per_second": [50.0, 100.0],
        "sightline_train_waiting_share": [0.0, 0.5],
        "sightline_train_epoch": [1, 2],
    }
    for gauge in made.values():
        assert gauge.tags == {"model": "caps", "run": "night"}
        assert set(gauge.tag_keys) == set(gauge.tags)
