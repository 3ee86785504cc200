"""Figures to Ray's metrics, which Ray's agent on each node shows to Prometheus.

Serve's own classes add the tags `application`, `deployment` and `replica`. A counter is told what
was added since the last time. Distributions go as gauges of cumulative counts: Ray's own histograms
cost 8 microseconds a value here and a loop in the agent for each, and the agent puts every value
into the middle of its bucket, so sums come out wrong (Ray 2.60, its issue 54538).
"""

from __future__ import annotations

from collections.abc import Sequence

from ray.serve.metrics import Counter, Gauge

from serve_app.metrics import Figure

Series = tuple[str, tuple[tuple[str, str], ...]]


class RaySink:
    """Hands figures of this replica to Ray. Used by one thread."""

    def __init__(self) -> None:
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._told: dict[Series, float] = {}

    def write(self, figures: Sequence[Figure]) -> None:
        """Take all figures of this moment."""
        for each in figures:
            if each.kind == "counter":
                self._add(each)
            else:
                self._gauge(each).set(each.value, dict(each.tags))

    def _add(self, figure: Figure) -> None:
        series = figure.name, figure.tags
        added = figure.value - self._told.get(series, 0)
        if added > 0:
            self._counter(figure).inc(added, dict(figure.tags))
            self._told[series] = figure.value

    def _counter(self, figure: Figure) -> Counter:
        if figure.name not in self._counters:
            self._counters[figure.name] = Counter(figure.name, figure.about, _names(figure))
        return self._counters[figure.name]

    def _gauge(self, figure: Figure) -> Gauge:
        if figure.name not in self._gauges:
            self._gauges[figure.name] = Gauge(figure.name, figure.about, _names(figure))
        return self._gauges[figure.name]


def _names(figure: Figure) -> tuple[str, ...]:
    return tuple(name for name, _ in figure.tags)
