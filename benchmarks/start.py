"""How long a replica takes from start to ready, part by part, with a warm cache and without Ray.

`python -m benchmarks.start [--bundle URI] [--repetitions N]` starts fresh processes, each of which
first loads what a Serve worker has loaded before it meets our code (that is Ray's own start, and is
not counted), then imports the replica and does what its constructor does. The first process fills
the cache and is not counted either.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

from benchmarks.common import Report, library_versions, machine_facts, print_table, save_bars
from benchmarks.fixtures import find_bundle

LIMIT_S = 3.0
REPETITIONS = 7
# What a worker of Serve has loaded when it is given a class.
OF_SERVE = ("ray.serve._private.replica", "uvicorn")
Parts = Mapping[str, float]


def start_once(bundle: str) -> Parts:
    """Start a replica in this process, as its constructor does, and return the seconds by part."""
    for name in OF_SERVE:
        importlib.import_module(name)
    from models.stopwatch import measuring, part
    from serve_app.asgi import build_asgi
    from serve_app.config import ServeOptions
    from serve_app.keys import open_keys
    from serve_app.model import open_served
    from serve_app.replica import start_seconds

    options = ServeOptions(bundle=bundle)
    with measuring() as watch:
        keys = open_keys(options.keys_file)
        model = open_served(options)
        with part("http"):
            build_asgi(model, keys)
    parts = start_seconds(watch)
    model.close()
    return parts


def start_in_process(bundle: str, cache: str) -> Parts:
    """Do the same in a fresh process that caches in a folder."""
    command = [sys.executable, "-m", "benchmarks.start", "--once", "--bundle", bundle]
    environment = {**os.environ, "SIGHTLINE_CACHE": cache}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(f"a start failed:\n{result.stderr}")
    parts: Parts = json.loads(result.stdout.splitlines()[-1])
    return parts


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, and end with one JSON line; 1 if a start takes longer than it may."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__)
    parser.add_argument("--bundle", help="URI; the demo's newest, or one made here, if not given")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--quick", action="store_true", help="three repetitions")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    bundle = find_bundle(given.bundle)
    if given.once:
        print(json.dumps(start_once(bundle)))
        return 0
    report = Report("start", machine=machine_facts(), versions=library_versions())
    with tempfile.TemporaryDirectory() as cache:
        cold = start_in_process(bundle, cache)
        times = 3 if given.quick else given.repetitions
        starts = [start_in_process(bundle, cache) for _ in range(times)]
    series = {name: [parts[name] for parts in starts] for name in starts[0]}
    medians = {name: statistics.median(values) for name, values in series.items()}
    rows = [
        (
            name,
            f"{medians[name]:.3f}",
            f"{min(values):.3f}",
            f"{max(values):.3f}",
            f"{cold[name]:.3f}",
        )
        for name, values in series.items()
    ]
    columns = ("part", "median", "least", "most", "first, cold")
    print_table(f"replica from start to ready, seconds, {times} processes", columns, rows)
    save_bars("start", "seconds", series)
    report.figures |= {f"{name}_s": seconds for name, seconds in medians.items()}
    report.figures |= {"first_total_s": cold["total"], "bundle": bundle}
    report.ratios["total_to_limit"] = medians["total"] / LIMIT_S
    print(report.line())
    return int(medians["total"] > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
