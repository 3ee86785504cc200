"""OpenVINO on the CPU, from the bundle's ONNX file: the default where there is no GPU.

It takes one image per call on as many streams as threads, and one call more than that: an image
that is ready waits within the library, whose thread goes on with it at once instead of falling
asleep in between. Two settings are not the library's defaults: thread pinning is off, because every
OpenVINO process pins to the first cores and two replicas would share one (200 against 440 images/s,
measured on 2 cores); and bfloat16 is asked for by name, because whether it is accurate enough is
for the bundle's proof to say, and whether it is faster for a comparison, not for a hint.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from models.bundle import Bundle
from models.engines.base import EngineOptions, Feeding, Images, Outputs, engine_artifact
from models.errors import EngineError
from models.stopwatch import part

HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
MAX_BATCH = 64


class OpenVinoEngine:
    """A compiled model with an infer request for each stream, and one that waits."""

    name = "openvino"
    device = "cpu"

    def __init__(self, compiled: Any, precision: str, num_streams: int) -> None:
        from openvino import Tensor

        self._tensor = Tensor
        self.precision = precision
        self.feeding = Feeding("streams", parallel=num_streams, max_batch=MAX_BATCH)
        self._names = [next(iter(output.names)) for output in compiled.outputs]
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(num_streams + 1):
            self._idle.put(compiled.create_infer_request())

    def run(self, images: Images) -> Outputs:
        """Run uint8 images (N, H, W, 3); waits while every request is taken. The GIL is released
        meanwhile. Raises `EngineError` if the device fails.
        """
        with self._request() as request:
            # Sharing spares a copy of the input; the outputs are copied, since the request is used
            # again at once. `infer` of OpenVINO's Python layer does the same with 90 us of checks
            # and copies around it.
            try:
                # What cannot be shared is copied: pixels that lie in a request's body.
                shared = np.require(images, requirements=("C", "W"))
                request.set_input_tensor(0, self._tensor(shared, shared_memory=True))
                request.start_async()
                request.wait()
            except RuntimeError as error:
                raise EngineError(f"OpenVINO failed: {_last_line(error)}") from error
            return {
                name: np.array(request.get_output_tensor(i).data, dtype=np.float32)
                for i, name in enumerate(self._names)
            }

    def close(self) -> None:
        """Drop the infer requests, and with them the compiled model."""
        while not self._idle.empty():
            self._idle.get_nowait()

    @contextmanager
    def _request(self) -> Iterator[Any]:
        request = self._idle.get()
        try:
            yield request
        finally:
            self._idle.put(request)


def precisions(options: EngineOptions) -> Sequence[str]:
    """Return bf16 and fp32 where the CPU computes bfloat16 in hardware, else fp32 alone."""
    if options.precision != "auto":
        return (options.precision,)
    return ("bf16", "fp32") if "BF16" in _capabilities() else ("fp32",)


def open_engine(bundle: Bundle, precision: str, options: EngineOptions) -> OpenVinoEngine:
    """Read and compile the bundle's ONNX file."""
    if options.device != "cpu":
        raise EngineError(f"the openvino engine runs on the CPU, not on {options.device!r}")
    if precision not in HINTS:
        raise EngineError(
            f"the openvino engine has no precision {precision!r}; expected {', '.join(HINTS)}"
        )
    if precision == "bf16" and "BF16" not in _capabilities():
        raise EngineError("this CPU has no bfloat16 (avx512_bf16 or amx_bf16); use fp32")
    path = bundle.path(engine_artifact(bundle, "openvino"))
    num_streams = options.num_threads
    settings = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "NUM_STREAMS": num_streams,
        "INFERENCE_NUM_THREADS": num_streams,
        "ENABLE_CPU_PINNING": False,
    }
    try:
        with part("read"):
            network = shared_core().read_model(path)
        with part("compile"):
            compiled = shared_core().compile_model(network, "CPU", settings)
        return OpenVinoEngine(compiled, precision, num_streams)
    except RuntimeError as error:
        raise EngineError(f"OpenVINO cannot compile {path.name}: {_last_line(error)}") from error


@cache
def shared_core() -> Any:
    """Return the process's one `openvino.Core`.

    Each has a CPU plugin of its own (2026.4), which gives the thread that makes it another stack
    for signals, and takes that away when it goes. Where two go in the order in which they came, a
    stack is left that is no memory any more, and the next signal that Python handles ends the
    process with a segmentation fault.
    """
    import openvino

    return openvino.Core()


def _capabilities() -> Sequence[str]:
    """Return what the CPU computes in hardware. Raises `EngineError` where OpenVINO has no CPU."""
    try:
        found: Sequence[str] = shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except RuntimeError as error:
        raise EngineError(f"OpenVINO cannot use this CPU: {_last_line(error)}") from error
    return found


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
