"""Decode and infer without any server: what the machine could do at most.

One guess at the best layout can be half of the truth, so `LAYOUTS` holds every sensible one. A
layout is run by processes of their own (`python -m benchmarks.ceiling`), which load the model, say
that they are ready, and then run for as many seconds as each line on their standard input says.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.crew import Crew
from models.bundle import Bundle, open_bundle
from models.engines.base import engine_artifact
from models.engines.openvino_engine import HINTS, shared_core
from models.predictor import Predictor, open_predictor
from models.preprocess import prepare

WARM_UP_IMAGES = 10


@dataclass(frozen=True)
class Layout:
    """How the work is spread."""

    processes: int
    threads: int  # per process
    streams: int  # of OpenVINO, per process
    is_pinned: bool
    is_async: bool = False  # one decoding thread and OpenVINO's AsyncInferQueue
    is_split: bool = False  # each process may run on one core only, another one for each

    @property
    def name(self) -> str:
        """Its name in tables and plots."""
        queue = " async" if self.is_async else ""
        pinned = " pinned" if self.is_pinned else ", a core each" if self.is_split else ""
        return f"{self.processes} proc x {self.threads} thr x {self.streams} str{queue}{pinned}"


def layouts(cores: int) -> list[Layout]:
    """Return every sensible layout for a machine.

    Pinned by OpenVINO, each process takes the first cores, so processes with a stream each are put
    on their cores from outside instead.
    """
    found = []
    for is_pinned in (False, True):
        found += [
            Layout(1, cores, cores, is_pinned),
            Layout(1, cores + 1, cores, is_pinned),
            Layout(cores, 2, 2, is_pinned),
            Layout(1, 1, cores, is_pinned, is_async=True),
        ]
    of_one_stream = [
        Layout(cores, threads, 1, False, is_split=is_split)
        for threads in (1, 2)
        for is_split in (False, True)
    ]
    return [*found, *of_one_stream]


def open_crew(
    layout: Layout, bundle: str, images: Path, precision: str, environment: Mapping[str, str]
) -> Crew:
    """Start the processes of a layout."""
    command = [
        *(sys.executable, "-m", "benchmarks.ceiling", "--bundle", bundle),
        *("--images", str(images), "--threads", str(layout.threads)),
        *("--streams", str(layout.streams), "--precision", precision),
        *(["--pinned"] if layout.is_pinned else []),
        *(["--async-queue"] if layout.is_async else []),
    ]
    cores = [
        ["--core", str(number)] if layout.is_split else [] for number in range(layout.processes)
    ]
    return Crew(layout.name, [[*command, *core] for core in cores], environment)


def proven_precision(bundle: Bundle) -> str:
    """Return the precision in which the server would run the bundle, so that both do the same
    work.
    """
    predictor: Predictor = open_predictor(bundle)
    if predictor.engine.name != "openvino":
        raise RuntimeError(f"the ceiling is measured with OpenVINO, not {predictor.engine.name}")
    predictor.close()
    return predictor.engine.precision


def _compile(bundle: Bundle, precision: str, num_streams: int, is_pinned: bool) -> Any:
    settings = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "NUM_STREAMS": num_streams,
        "INFERENCE_NUM_THREADS": num_streams,
        "ENABLE_CPU_PINNING": is_pinned,
    }
    path = bundle.path(engine_artifact(bundle, "openvino"))
    return shared_core().compile_model(str(path), "CPU", settings)


def _threads_runner(
    compiled: Any, decode: Callable[[int], Any], num_threads: int
) -> Callable[[float], float]:
    """Return what runs for some seconds, on threads that decode and infer one image at a time."""
    from openvino import Tensor

    requests = [compiled.create_infer_request() for _ in range(num_threads)]

    def run(seconds: float) -> float:
        counts = [0] * num_threads
        end = time.perf_counter() + seconds

        def work(thread: int) -> None:
            position = thread * 7
            request = requests[thread]
            while time.perf_counter() < end:
                # As our engine does: `infer` would add 90 us of checks and copies.
                image = decode(position)
                request.set_input_tensor(0, Tensor(image, shared_memory=True))
                request.start_async()
                request.wait()
                position += 1
                counts[thread] += 1

        workers = [threading.Thread(target=work, args=(thread,)) for thread in range(num_threads)]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return sum(counts) / (time.perf_counter() - started)

    return run


def _queue_runner(compiled: Any, decode: Callable[[int], Any]) -> Callable[[float], float]:
    """Return what runs for some seconds, one thread decoding ahead of OpenVINO's own queue."""
    import openvino

    queue = openvino.AsyncInferQueue(compiled)

    def run(seconds: float) -> float:
        started = time.perf_counter()
        position = 0
        while time.perf_counter() < started + seconds:
            queue.start_async([decode(position)])
            position += 1
        queue.wait_all()
        return position / (time.perf_counter() - started)

    return run


def read_images(folder: Path) -> Sequence[bytes]:
    """Return the image files of a folder, in the order of their names."""
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def main() -> int:
    """Be one process of a layout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--pinned", action="store_true")
    parser.add_argument("--async-queue", action="store_true")
    parser.add_argument("--core", type=int, help="the only one to run on, counted from 0")
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[options.core]})
    bundle = open_bundle(options.bundle)
    spec = bundle.manifest.preprocess
    images = read_images(options.images)

    def decode(position: int) -> Any:
        return prepare(images[position % len(images)], spec)[None]

    compiled = _compile(bundle, options.precision, options.streams, options.pinned)
    run = (
        _queue_runner(compiled, decode)
        if options.async_queue
        else _threads_runner(compiled, decode, options.threads)
    )
    warm_up = compiled.create_infer_request()
    for position in range(WARM_UP_IMAGES):
        warm_up.infer([decode(position)])
    print("ready", os.getpid(), flush=True)
    for line in sys.stdin:
        print(run(float(line)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
