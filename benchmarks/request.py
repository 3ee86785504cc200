"""What a request costs beside decode and inference: CPU time of the ASGI application, without Ray.

`python -m benchmarks.request [--quick]` sends whole requests into the application of a tiny model
whose images are answered at once, with no thread and no engine in between: what is left is reading
the request, its checks, its counts, reading the labels, and writing the answer. Metrics and the
access log are on as they are by default. The ratios are those of a model that takes 2.5 ms an image
on one core, faster than any that is plausible.

`--profile CALL` shows where the time of one goes, by function.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import pstats
import random
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.common import Report, library_versions, machine_facts, print_table
from models.predictor import Prediction
from models.preprocess import Image
from serve_app.access_log import AccessLog, to_file
from serve_app.asgi import build_asgi
from serve_app.config import ServeOptions
from serve_app.model import ServedModel, open_served
from tests.bundles import NUM_FEATURES, tiny_bundle

FASTEST_US = 2500.0  # of a core per image, of the fastest plausible model
PHOTO = b"\xff\xd8\xff" + random.Random(0).randbytes(37_000)  # never decoded
NUM_FILES = 16
SIZE = 64  # pixels, of the model's input
CLASSES = ("good", "scratched", "dented", "stained", "chipped", "missing")
BOUNDARY = b"b0und4ry"
HEADERS = [  # as HAProxy hands them on
    (b"host", b"127.0.0.1:8000"),
    (b"user-agent", b"python-requests/2.32"),
    (b"accept", b"*/*"),
    (b"x-request-id", b"0d7c2b4e-6f7f-4c3f-9d0c-6a4f6f0f5a11"),
]


@dataclass(frozen=True)
class Asked:
    """One kind of request."""

    path: str
    num_images: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes

    def scope(self) -> dict[str, Any]:
        """Return a fresh scope, which applications may write into."""
        length = (b"content-length", str(len(self.body)).encode())
        return {
            "type": "http",
            "method": "POST",
            "root_path": "/v2/models/tiny",
            "path": f"/v2/models/tiny{self.path}",
            "query_string": b"",
            "headers": [*HEADERS, *self.headers, length],
        }


class InstantFeeder:
    """Answers at once, and counts as the feeder of an engine does."""

    def __init__(self, model: ServedModel) -> None:
        outputs = model.manifest.outputs
        drawn = np.random.default_rng(1)
        raw = drawn.random((1, outputs.probabilities)).astype(np.float32)
        probabilities = raw / raw.sum() if outputs.probabilities else None
        self._answer = Prediction(probabilities, drawn.random((1, NUM_FEATURES), np.float32))
        self._count = model.statistics.add_run

    async def score(self, prepare: Any) -> Prediction:
        """Answer for one image that would have to be decoded."""
        self._count(1, 1000, 500_000, 2_000_000)
        return self._answer

    async def run(self, image: Image) -> Prediction:
        """Answer for one image that is ready."""
        self._count(1, 1000, 0, 2_000_000)
        return self._answer

    def close(self) -> None:
        """Do nothing: there are no threads."""


class Served:
    """One model that is asked in one way."""

    def __init__(self, folder: Path, kind: str, asked: Asked) -> None:
        bundle = tiny_bundle(folder / kind, kind=kind, size=SIZE, classes=CLASSES)
        store = str(folder / f"{kind}-labels") if kind == "dynamic" else None
        options = ServeOptions(bundle=bundle, threads=1, label_store=store)
        self.asked = asked
        self.model = open_served(options)
        self.model._feeder.close()
        self.model._feeder = InstantFeeder(self.model)
        write = to_file(folder / "access.log")
        self.model.watch.access_log = AccessLog(write, options.access_log_sample, self.model.facts)
        self.app = build_asgi(self.model)

    def cpu_us(self, count: int) -> float:
        """Return the CPU time of this process per request, in microseconds."""
        started = time.process_time()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as in Serve
            runner.run(self.ask(count))
        return (time.process_time() - started) / count * 1e6

    async def ask(self, count: int) -> None:
        """Send so many requests, each in a task of its own, as servers do."""
        scopes = [self.asked.scope() for _ in range(count)]
        for scope in scopes:
            await asyncio.create_task(self.app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": self.asked.body, "more_body": False}

    async def _send(self, message: Any) -> None:
        assert message.get("status", 200) == 200, message


def all_asked() -> dict[tuple[str, str], Asked]:
    """Return what is measured, by the kind of the model and a name."""
    raw = [(b"content-type", b"image/jpeg")]
    form = [(b"content-type", b"multipart/form-data; boundary=" + BOUNDARY)]
    found: dict[tuple[str, str], Asked] = {}
    for kind in ("generic", "dynamic", "embedding"):
        call = "embed" if kind == "embedding" else "classify"
        found[kind, f"{call}, raw body"] = Asked(f"/{call}", 1, raw, PHOTO)
        found[kind, f"{call}, {NUM_FILES} files"] = Asked(f"/{call}", NUM_FILES, form, _multipart())
        found[kind, "infer, a file"] = _infer([1], "image", "BYTES", _element(PHOTO))
        found[kind, f"infer, {NUM_FILES} files"] = _infer(
            [NUM_FILES], "image", "BYTES", _element(PHOTO) * NUM_FILES
        )
    shape = [NUM_FILES, SIZE, SIZE, 3]
    pixels = bytes(NUM_FILES * SIZE * SIZE * 3)
    found["generic", f"infer, {NUM_FILES} of pixels"] = _infer(shape, "pixels", "UINT8", pixels)
    return found


def _multipart() -> bytes:
    head = b'Content-Disposition: form-data; name="image"; filename="photo.jpg"\r\n'
    part = b"--" + BOUNDARY + b"\r\n" + head + b"Content-Type: image/jpeg\r\n\r\n" + PHOTO + b"\r\n"
    return part * NUM_FILES + b"--" + BOUNDARY + b"--\r\n"


def _element(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def _infer(shape: Sequence[int], name: str, datatype: str, data: bytes) -> Asked:
    given = {"name": name, "shape": shape, "datatype": datatype}
    parameters = {"binary_data_size": len(data)}
    head = json.dumps(
        {
            "inputs": [{**given, "parameters": parameters}],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    headers = [
        (b"content-type", b"application/octet-stream"),
        (b"inference-header-content-length", str(len(head)).encode()),
    ]
    return Asked("/infer", shape[0], headers, head + data)


def measure(repetitions: int, count: int) -> dict[tuple[str, str], list[float]]:
    """Return the CPU time per request of each, in microseconds, one value per repetition."""
    with tempfile.TemporaryDirectory() as made:
        served = {name: Served(Path(made), name[0], asked) for name, asked in all_asked().items()}
        series: dict[tuple[str, str], list[float]] = {name: [] for name in served}
        for repetition in range(-1, repetitions):  # the first warms up
            names = list(served)
            for name in names if repetition % 2 else reversed(names):
                each = served[name]
                spent = each.cpu_us(max(20, count // each.asked.num_images))
                if repetition >= 0:
                    series[name].append(spent)
        for each in served.values():
            each.model.close()
    return series


def profile(name: tuple[str, str], count: int = 5000, rows: int = 30) -> None:
    """Print the functions that one takes its time in."""
    with tempfile.TemporaryDirectory() as made:
        served = Served(Path(made), name[0], all_asked()[name])
        served.cpu_us(count)
        seen = cProfile.Profile()
        seen.runcall(served.cpu_us, count)
        served.model.close()
        pstats.Stats(seen).sort_stats("tottime").print_stats(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, and end with one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.request", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    names = {f"{kind}: {what}": (kind, what) for kind, what in all_asked()}
    parser.add_argument("--profile", choices=names, metavar="CALL", help=", ".join(names))
    given = parser.parse_args(arguments)
    if given.profile:
        profile(names[given.profile])
        return 0
    report = Report("request", machine=machine_facts(), versions=library_versions())
    rows = []
    series = measure(*((5, 400) if given.quick else (15, 1000)))
    for name, asked in all_asked().items():
        low, median, high = statistics.quantiles(series[name], n=4)
        title, per_image = ": ".join(name), median / asked.num_images
        report.figures[f"{title}_us"] = median
        report.ratios[f"{title}, throughput_at_2.5_ms"] = FASTEST_US / (FASTEST_US + per_image)
        rows.append((title, f"{median:.0f}", f"{low:.0f} to {high:.0f}", f"{per_image:.1f}"))
    columns = ("call", "a request", "half of them", "an image")
    print_table("CPU time beside decode and inference, microseconds", columns, rows)
    print(report.line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
