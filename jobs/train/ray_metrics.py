"""The state of a training for Ray's metrics exporter: four gauges, set a few times a second."""

from __future__ import annotations

import math

from jobs.train.borders import Status, Watcher


class RayGauges(Watcher):
    """Of the first worker. Needs a running Ray."""

    def __init__(self, model: str, run_id: str) -> None:
        from ray.util.metrics import Gauge

        tags = {"model": model, "run": run_id}

        def gauge(name: str, description: str) -> Gauge:
            made = Gauge(f"sightline_train_{name}", description, tag_keys=tuple(tags))
            made.set_default_tags(tags)
            return made

        self._loss = gauge("loss", "Mean training loss of the last steps")
        self._speed = gauge("images_per_second", "Images trained on per second, all workers")
        self._waiting = gauge("waiting_share", "Share of the time spent waiting for images, 0 to 1")
        self._epoch = gauge("epoch", "Epoch that is being trained, counted from 1")

    def show(self, status: Status) -> None:
        """Set all four."""
        if not math.isnan(status.loss):
            self._loss.set(status.loss)
        self._speed.set(status.images_per_second)
        self._waiting.set(status.waiting_share)
        self._epoch.set(status.epoch + 1)
