"""`python -m tests.serve_app.json_memory`: by how many bytes a process grows while it takes JSON
apart, for each kind of body a process of its own. It prints one JSON object, from the kind to what
the body weighs and what it took.

What was allocated and never touched is no memory, so only the system can tell.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import orjson

from models.errors import SightlineError
from serve_app.config import Limits
from serve_app.oip.infer_json import json_weight, parse_infer
from serve_app.oip.signature import TensorSpec, View

NUM_IMAGES, SIZE = 64, 64
NUM_VALUES = NUM_IMAGES * SIZE * SIZE * 3
SPECS = (
    TensorSpec("image", "BYTES", (1,)),
    TensorSpec("pixels", "UINT8", (SIZE, SIZE, 3)),
    TensorSpec("tensor", "FP32", (3, SIZE, SIZE)),
)


def infer_body(spec: TensorSpec, data: bytes, num_images: int = NUM_IMAGES) -> bytes:
    """Return the body of a request for one tensor whose data is that text."""
    shape = orjson.dumps([num_images, *spec.dims])
    tensor = b'{"name":"%s","datatype":"%s","shape":%s,"data":'
    head = tensor % (spec.name.encode(), spec.datatype.encode(), shape)
    return b'{"inputs":[' + head + data + b"}]}"


def flat(one: bytes, count: int = NUM_VALUES) -> bytes:
    """Return a list of the same value."""
    return b"[" + b",".join([one] * count) + b"]"


def keys(count: int) -> bytes:
    """Return an object of so many keys."""
    return b"{" + b",".join(b'"%x":1' % number for number in range(count)) + b"}"


IMAGE, PIXELS, PLANES = SPECS
BODIES: Mapping[str, Callable[[], bytes]] = {
    "numbers": lambda: infer_body(PIXELS, flat(b"200")),
    "nested numbers": lambda: infer_body(
        PIXELS, flat(flat(flat(flat(b"200", 3), SIZE), SIZE), NUM_IMAGES)
    ),
    "planes": lambda: infer_body(PLANES, flat(b"1.5")),
    "base64": lambda: infer_body(IMAGE, flat(b'"%s"' % (b"A" * 2_000_000), 8), 8),
    "large numbers": lambda: infer_body(PIXELS, flat(b"999")),
    "lists of one": lambda: infer_body(PIXELS, flat(b"[1]", NUM_VALUES // 2)),
    "lists in lists": lambda: infer_body(PIXELS, flat(b"[[[1]]]", NUM_VALUES // 4)),
    "strings": lambda: infer_body(PIXELS, flat(b'"ab"')),
    "objects": lambda: infer_body(PIXELS, flat(b'{"a":1}', NUM_VALUES // 2)),
    "keys": lambda: infer_body(PIXELS, keys(NUM_VALUES)),
}


def measure(body: bytes) -> int:
    """Return by how much this process grew at most."""
    output = TensorSpec("probabilities", "FP32", (2,))
    view = View("", {spec.name: spec for spec in SPECS}, {output.name: output})
    limits = Limits(max_images=NUM_IMAGES)
    ctypes.CDLL(None).malloc_trim(0)  # what making the body has left would be used again
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    # Some are no images, which is found out when they were taken apart.
    with suppress(SightlineError):
        parse_infer(body, None, view, limits)
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """Return a figure of this process in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    """Measure and print."""
    told: dict[str, list[int]] = {}
    for kind, make in BODIES.items():
        reading, writing = os.pipe()
        if os.fork() == 0:
            body = make()
            figures = [json_weight(body, len(body)), len(body) + measure(body)]
            os.write(writing, orjson.dumps(figures))
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as figures_read:
            told[kind] = orjson.loads(figures_read.read())
        os.wait()
    print(orjson.dumps(told).decode())


if __name__ == "__main__":
    main()
