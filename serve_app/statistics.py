"""What a replica has done so far, in the counters of Triton's statistics extension.

A request counts once, in `success` or `fail`. `queue`, `compute_input` (decoding) and
`compute_infer` count images, since every image is a job of its own here; `compute_output` counts
answers written. Times are nanoseconds, summed. There is no cache of answers, so its counters are 0.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from serve_app.histograms import NS, SECONDS, Distribution, Histogram
from serve_app.trace import Trace, current

Counters = dict[str, Any]

REQUEST_PARTS = ("success", "fail")
IMAGE_PARTS = ("queue", "compute_input", "compute_infer")
PARTS = (*REQUEST_PARTS, *IMAGE_PARTS, "compute_output", "cache_hit", "cache_miss")
BATCH_PARTS = ("compute_input", "compute_infer", "compute_output")


class Statistics:
    """Counters that many threads add to: the one owner of what was run, for `/stats` and for
    metrics.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Count and nanoseconds of what is no run.
        self._others = {part: [0, 0] for part in (*REQUEST_PARTS, "compute_output")}
        self._queue, self._decode, self._infer = (Histogram(SECONDS, NS) for _ in range(3))
        self._last = 0.0
        self._last_tick = time.monotonic()  # the same by a clock that nobody sets
        # By batch size: runs, nanoseconds of decoding, nanoseconds of running.
        self._batches: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0])

    def add_run(self, batch: int, queue_ns: int, input_ns: int, infer_ns: int) -> None:
        """Count one run of the engine on a batch of images; times are summed over its images, and
        noted in the trace of the request whose context this is.
        """
        trace, now = current.get(), time.time()
        with self._lock:
            self._last, self._last_tick = now, time.monotonic()
            self._queue.add_sum(queue_ns, batch)
            if input_ns:  # else they came as pixels
                self._decode.add_sum(input_ns, batch)
            self._infer.add_sum(infer_ns, batch)
            runs = self._batches[batch]
            runs[0] += 1
            runs[1] += input_ns
            runs[2] += infer_ns
            if trace is not None:
                _note(trace, batch, queue_ns, input_ns, infer_ns)

    def note(
        self, trace: Trace | None, images: int, queue_ns: int, input_ns: int, infer_ns: int
    ) -> None:
        """Note in a request's trace what was spent on some of its images."""
        if trace is not None:
            with self._lock:  # other images of the request may be done on other threads
                _note(trace, images, queue_ns, input_ns, infer_ns)

    def request(self) -> Timed:
        """Count the request that is answered inside, as a success unless it raises."""
        return Timed(self, "success", "fail")

    def output(self) -> Timed:
        """Count an answer that is written inside."""
        return Timed(self, "compute_output", None)

    def add(self, part: str, spent_ns: int) -> None:
        """Count something that is no run."""
        with self._lock:
            counted = self._others[part]
            counted[0] += 1
            counted[1] += spent_ns

    def seconds_since_run(self) -> float:
        """Return how long ago the engine finished something, or how long there has been nothing."""
        return time.monotonic() - self._last_tick

    def stages(self) -> dict[str, Distribution]:
        """Return the seconds that images waited and took to decode and to run."""
        with self._lock:
            return {
                "queue": self._queue.frozen(),
                "decode": self._decode.frozen(),
                "infer": self._infer.frozen(),
            }

    def counters(self) -> Counters:
        """Return all counters as plain values, to be sent to whoever adds them up."""
        with self._lock:
            batches = {size: tuple(runs) for size, runs in self._batches.items()}
            others = {part: tuple(pair) for part, pair in self._others.items()}
            queue_ns, last_ms = int(self._queue.total), int(self._last * 1000)
        images = sum(size * runs for size, (runs, *_) in batches.items())
        spent = (
            queue_ns,
            sum(input_ns for _, input_ns, _ in batches.values()),
            sum(infer_ns for *_, infer_ns in batches.values()),
        )
        of_images = {part: (images, ns) for part, ns in zip(IMAGE_PARTS, spent, strict=True)}
        return {
            "parts": {part: (0, 0) for part in PARTS} | others | of_images,
            "images": images,
            "runs": sum(runs for runs, *_ in batches.values()),
            "last_ms": last_ms,
            "batches": batches,
        }


class Timed:
    """Counts what happens inside with the time it took; nothing where it raises and there is no
    name for that. A class, because a generator would take three times as long.
    """

    __slots__ = ("_if_raised", "_part", "_started", "_statistics")

    def __init__(self, statistics: Statistics, part: str, if_raised: str | None) -> None:
        self._statistics, self._part, self._if_raised = statistics, part, if_raised

    def __enter__(self) -> None:
        self._started = time.perf_counter_ns()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        part = self._part if kind is None else self._if_raised
        if part is not None:
            self._statistics.add(part, time.perf_counter_ns() - self._started)


def _note(trace: Trace, images: int, queue_ns: int, input_ns: int, infer_ns: int) -> None:
    trace.images += images
    trace.queue_ns += queue_ns
    trace.input_ns += input_ns
    trace.infer_ns += infer_ns


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
