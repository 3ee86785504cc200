"""What it costs to see: CPU time per image of metrics, access log and request ids, without Ray.

`python -m benchmarks.seeing [--quick]` times the calls that see a request by themselves, which is
what the ratio is made of: that of a model which takes 2.5 ms an image on one core, faster than any
that is plausible. Then it sends one image after the other into the ASGI application of a tiny
model, with and without, in turns: an engine's own threads make that difference uncertain by more
than it is, so it only shows that nothing large was forgotten.

Handing the figures to Ray is not in it: some 130 series every 5 s, at 6 microseconds each, are
0.02 % of a core.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import Report, library_versions, machine_facts, print_table
from serve_app.access_log import AccessLog, to_file
from serve_app.asgi import build_asgi
from serve_app.config import ServeOptions
from serve_app.meters import Meters
from serve_app.metrics import Exporter, PlainSink, figures_of
from serve_app.model import ServedModel, open_served
from serve_app.routing import Api
from serve_app.statistics import Statistics
from serve_app.watch import Watch
from tests.bundles import tiny_bundle

FASTEST_US = 2500.0  # of a core per image, of the fastest plausible model
BARE = "nothing"
# Whether there are metrics, and the sample of the access log if there is one.
VARIANTS: dict[str, tuple[bool, float | None]] = {
    BARE: (False, None),
    "metrics": (True, None),
    "metrics, access log of 1 %": (True, 0.01),
    "metrics, access log of all": (True, 1.0),
}
SCOPE: dict[str, Any] = {
    "type": "http",
    "method": "POST",
    "path": "/classify",
    "query_string": b"",
    "headers": [(b"x-request-id", b"0d7c2b4e-6f7f-4c3f-9d0c-6a4f6f0f5a11")],
}


class Served:
    """One variant: a model with what sees its requests."""

    def __init__(self, bundle: str, folder: Path, name: str) -> None:
        has_metrics, sample = VARIANTS[name]
        options = ServeOptions(bundle=bundle, threads=1, metrics=has_metrics)
        self.model: ServedModel = open_served(options)
        if sample is not None:
            write = to_file(folder / f"{len(name)}.log")
            self.model.watch.access_log = AccessLog(write, sample, self.model.facts)
        collect = partial(figures_of, self.model)
        self.exporter = Exporter(collect, PlainSink()) if has_metrics else None
        self.app: Api = build_asgi(self.model)

    def cpu_us(self, image: bytes, count: int) -> float:
        """Return the CPU time of this process per image, in microseconds."""

        async def ask() -> None:
            for _ in range(count):
                await asyncio.create_task(self.app(dict(SCOPE), receive, send))

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": image, "more_body": False}

        async def send(message: Any) -> None:
            assert message.get("status", 200) == 200

        started = time.process_time()
        asyncio.run(ask())
        return (time.process_time() - started) / count * 1e6

    def close(self) -> None:
        """End its threads."""
        if self.exporter is not None:
            self.exporter.close()
        self.model.close()


def measure(repetitions: int, count: int) -> dict[str, list[float]]:
    """Return the CPU time per image of each variant, one value per repetition."""
    image = _small_photo()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        bundle = tiny_bundle(folder / "models")
        served = {name: Served(bundle, folder, name) for name in VARIANTS}
        for each in served.values():
            each.cpu_us(image, count)
        series: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for repetition in range(repetitions):
            names = list(served)
            for name in names if repetition % 2 else reversed(names):
                series[name].append(served[name].cpu_us(image, count))
        for each in served.values():
            each.close()
    return series


def _small_photo() -> bytes:
    """Return an image that decodes in no time, as the model runs in none."""
    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((96, 80)).save(buffer, "JPEG")
    return buffer.getvalue()


def calls_us(sample: float | None, count: int = 50_000) -> float:
    """Return the CPU time of all that sees a request of one image, called by itself: without
    meters and a log where `sample` is None, which leaves the request ids.
    """
    meters = None if sample is None else Meters()
    watch, counts = Watch(meters), Statistics()
    if sample is not None:
        watch.access_log = AccessLog(lambda lines: None, sample, {"model": "tiny"})
    given = SCOPE["headers"][0][1].decode()
    started = time.process_time()
    for _ in range(count):
        trace = watch.begin(given, "http")
        trace.call = "classify"
        job = copy_context()
        job.run(counts.add_run, 1, 1000, 500_000, 2_000_000)
        if meters is not None:
            meters.add_prediction("good", 0.9, is_unknown=False)
        watch.end(trace, 200, dict)
    watch.close()
    return (time.process_time() - started) / count * 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, and end with one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seeing", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    given = parser.parse_args(arguments)
    report = Report("seeing", machine=machine_facts(), versions=library_versions())
    sampled = ServeOptions(bundle="any").access_log_sample
    calls = {"ids": calls_us(None), "default": calls_us(sampled), "all_logged": calls_us(1.0)}
    for name, value in calls.items():
        report.figures[f"{name}_us"] = value
    report.ratios["throughput_at_2.5_ms"] = FASTEST_US / (FASTEST_US + calls["default"])
    rows = [(f"its calls alone: {name}", f"{value:.1f}", "", "") for name, value in calls.items()]
    series = measure(*((9, 300) if given.quick else (31, 500)))
    for name, values in series.items():
        # Of each repetition the difference, since the machine is not the same in all of them.
        added = [v - b for v, b in zip(values, series[BARE], strict=True)]
        low, _, high = statistics.quantiles(added, n=4)
        spread = f"{low:+.0f} to {high:+.0f}"
        rows.append(
            (name, f"{statistics.median(values):.0f}", f"{statistics.median(added):+.0f}", spread)
        )
    print_table(
        "CPU time per image, microseconds", ("seeing", "all", "added", "half of them"), rows
    )
    print(report.line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
