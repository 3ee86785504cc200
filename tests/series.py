"""The series that Prometheus gets of a served model and of the catalog: name and labels.

Made of the list of our metrics; that Ray really shows them so is held against a scrape in
`tests/serve_app/test_seeing_served.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from serve_app.metrics import ALL, METRICS, Metric

RAY_PREFIX = "ray_"
OF_RAY = frozenset({"application", "deployment", "replica", "NodeAddress", "SessionName"})
# What Ray's agent adds besides, to some series, and nothing here counts on.
OF_AGENT = frozenset({"Component", "Version", "WorkerId"})
OF_AGENT |= {"otel_scope_name", "otel_scope_version", "otel_scope_schema_url"}
# What Prometheus adds when it scrapes, on Kubernetes at least.
OF_SCRAPE = frozenset({"namespace", "job", "instance", "pod"})
# Ray Serve's own that we show beside ours.
FOREIGN: Mapping[str, frozenset[str]] = {
    "ray_serve_deployment_replica_healthy": frozenset({"application", "deployment"}),
}


def series_of(metric: Metric) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the series of one metric, without what a scrape adds."""
    name, labels = RAY_PREFIX + metric.full_name, {*metric.tags, *ALL, *OF_RAY}
    if metric.kind != "histogram":
        yield name, frozenset(labels)
        return
    yield f"{name}_bucket", frozenset({*labels, "le"})
    yield f"{name}_sum", frozenset(labels)
    yield f"{name}_count", frozenset(labels)


OURS: Mapping[str, frozenset[str]] = dict(pair for each in METRICS for pair in series_of(each))


def known_labels() -> dict[str, frozenset[str]]:
    """Return all labels of every series that an expression may name."""
    return {name: labels | OF_SCRAPE for name, labels in {**OURS, **FOREIGN}.items()}
