"""What a replica has done so far, in the counters of Triton's statistics extension.

A request counts once, in `success` or `fail`. `queue`, `compute_input` (decoding) and
`compute_infer` count images, since every image is a job of its own here; `compute_output` counts
answers written. Times are nanoseconds, summed. There is no cache of answers, so its counters are 0.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from serve_app.meters import Meters
from serve_app.trace import Trace, current

Counters = dict[str, Any]

REQUEST_PARTS = ("success", "fail")
IMAGE_PARTS = ("queue", "compute_input", "compute_infer")
PARTS = (*REQUEST_PARTS, *IMAGE_PARTS, "compute_output", "cache_hit", "cache_miss")
BATCH_PARTS = ("compute_input", "compute_infer", "compute_output")


class Statistics:
    """Counters that many threads add to."""

    def __init__(self, meters: Meters | None = None) -> None:
        """Runs are counted in `meters` as well."""
        self._lock = threading.Lock()
        self._meters = meters
        self._parts = {part: [0, 0] for part in PARTS}  # count, nanoseconds
        self._num_images = 0
        self._num_runs = 0
        self._last = 0.0
        # By batch size: runs, nanoseconds of decoding, nanoseconds of running.
        self._batches: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0])

    def add_run(self, batch: int, queue_ns: int, input_ns: int, infer_ns: int) -> None:
        """Count one run of the engine on a batch of images; times are summed over its images, and
        noted in the trace of the request whose context this is.
        """
        if self._meters is not None:
            self._meters.add_run(batch, queue_ns, input_ns, infer_ns)
        self.note(current.get(), batch, queue_ns, input_ns, infer_ns)
        with self._lock:
            self._num_runs += 1
            self._num_images += batch
            self._last = time.time()
            for part, spent in zip(IMAGE_PARTS, (queue_ns, input_ns, infer_ns), strict=True):
                self._parts[part][0] += batch
                self._parts[part][1] += spent
            runs = self._batches[batch]
            runs[0] += 1
            runs[1] += input_ns
            runs[2] += infer_ns

    def note(
        self, trace: Trace | None, images: int, queue_ns: int, input_ns: int, infer_ns: int
    ) -> None:
        """Note in a request's trace what was spent on some of its images."""
        if trace is None:
            return
        with self._lock:  # other images of the request may be done on other threads
            trace.images += images
            trace.queue_ns += queue_ns
            trace.input_ns += input_ns
            trace.infer_ns += infer_ns

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count the request that is answered inside, as a success unless it raises."""
        started, part = time.perf_counter_ns(), "fail"
        try:
            yield
            part = "success"
        finally:
            self._add(part, started)

    @contextmanager
    def output(self) -> Iterator[None]:
        """Count an answer that is written inside."""
        started = time.perf_counter_ns()
        yield
        self._add("compute_output", started)

    def counters(self) -> Counters:
        """Return all counters as plain values, to be sent to whoever adds them up."""
        with self._lock:
            return {
                "parts": {part: tuple(pair) for part, pair in self._parts.items()},
                "images": self._num_images,
                "runs": self._num_runs,
                "last_ms": int(self._last * 1000),
                "batches": {size: tuple(runs) for size, runs in self._batches.items()},
            }

    def _add(self, part: str, started: int) -> None:
        spent = time.perf_counter_ns() - started
        with self._lock:
            self._parts[part][0] += 1
            self._parts[part][1] += spent


def model_statistics(name: str, version: str, replicas: Iterable[Counters]) -> dict[str, Any]:
    """Return the counters of all replicas of one version, added up, in Triton's form."""
    every = list(replicas)
    sizes = sorted({size for each in every for size in each["batches"]})
    return {
        "name": name,
        "version": version,
        "last_inference": max((each["last_ms"] for each in every), default=0),
        "inference_count": sum(each["images"] for each in every),
        "execution_count": sum(each["runs"] for each in every),
        "inference_stats": {
            part: _duration(each["parts"][part] for each in every) for part in PARTS
        },
        "batch_stats": [
            _batch(size, [each["batches"][size] for each in every if size in each["batches"]])
            for size in sizes
        ],
    }


def _duration(pairs: Iterable[tuple[int, int]]) -> dict[str, int]:
    counts, spent = zip(*pairs, strict=True) if (pairs := list(pairs)) else ((), ())
    return {"count": sum(counts), "ns": sum(spent)}


def _batch(size: int, runs: list[tuple[int, int, int]]) -> dict[str, Any]:
    count = sum(each[0] for each in runs)
    # Writing an answer is no part of a run here, so it has no batch size.
    spent = (sum(each[1] for each in runs), sum(each[2] for each in runs), 0)
    counts = (count, count, 0)
    return {
        "batch_size": size,
        **{
            part: {"count": counted, "ns": ns}
            for part, counted, ns in zip(BATCH_PARTS, counts, spent, strict=True)
        },
    }
