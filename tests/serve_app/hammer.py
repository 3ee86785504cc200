"""Send mutated requests of one seed to the real application, in a process of its own.

`python -m tests.serve_app.hammer BUNDLE --seed 1 --count 1000` prints one line of JSON: how many of
each status, what was answered against the rules, the slowest request, and the memory. Before each
request its number is written to `--progress`, so that whoever started the process knows which
request killed it. A request can be sent again alone: `--first N --count 1`.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import faulthandler
import json
import logging
import resource
import time
import warnings
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.types import Message, Scope

from serve_app.asgi import build_asgi
from serve_app.config import Limits, ServeOptions
from serve_app.model import ServedModel, open_served
from serve_app.openapi.model import model_document
from serve_app.routing import Api
from tests.peak import peak
from tests.serve_app.mutations import Mutator, Sent

ROOT = "/v2/models/tiny"
CALLS = ("/classify", "/classify", "/embed", "/infer")
# What may be answered where the path or the method is wrong, beside 200.
REFUSALS = frozenset({400, 404, 405, 413, 415, 422})
MOST_SECONDS = 5.0  # of work for one request
LOOKS = 8  # at the memory, in equal steps, the last at the end
MIB = 1 << 20
PR_SET_THP_DISABLE = 41


@dataclass
class Found:
    """What came of the requests."""

    statuses: Counter[str] = field(default_factory=Counter)
    offences: list[str] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, -1)  # seconds of work, number
    rss: list[float] = field(default_factory=list)  # MiB, after each eighth of the requests
    peak: float = 0.0  # MiB


def options_for(bundle: str) -> ServeOptions:
    """Return small limits, so that requests reach them."""
    limits = Limits(
        max_body_bytes=200_000, max_image_bytes=100_000, max_pixels=4_000_000, max_images=8
    )
    return ServeOptions(bundle=bundle, limits=limits, threads=1, decode_threads=1)


async def send(api: Api, sent: Sent, root: str = ROOT) -> tuple[int, dict[bytes, bytes], bytes]:
    """Send one request as a server would and return status, headers and body."""
    told: list[Message] = []
    body: list[Message] = [{"type": "http.request", "body": sent.body, "more_body": False}]

    async def receive() -> Message:
        return body.pop() if body else {"type": "http.disconnect"}

    async def collect(message: Message) -> None:
        told.append(message)

    scope: Scope = {
        "type": "http",
        "method": sent.method,
        "path": root + sent.path,
        "root_path": root,
        "query_string": sent.query,
        "headers": sent.headers,
    }
    await api(scope, receive, collect)
    return told[0]["status"], dict(told[0]["headers"]), told[1]["body"]


def offence(
    status: int,
    headers: dict[bytes, bytes],
    body: bytes,
    allowed: Collection[int] = REFUSALS,
) -> str:
    """Say what is wrong with an answer, or nothing. `allowed` are the statuses of refusals."""
    if status == 200:
        return ""
    if status not in allowed:
        return f"status {status}: {body[:200]!r}"
    if headers[b"content-type"] != b"application/json":
        return f"status {status} as {headers[b'content-type']!r}"
    value = json.loads(body)
    if not {"error", "code"} <= set(value) or not value["error"] or not value["code"]:
        return f"status {status} without the error form: {body[:200]!r}"
    if len(body) > 2000:
        return f"status {status} answered with {len(body)} bytes: {body[:200]!r}"
    return ""


async def hammer(model: ServedModel, seed: int, first: int, count: int, progress: Path) -> Found:
    """Send the requests `first` to `first + count - 1`."""
    spec = model.manifest.preprocess
    calls = [call for call in CALLS if call == "/infer" or call[1:] in model.kind.calls]
    mutator = Mutator(seed, (spec.height, spec.width), calls)
    api, found = build_asgi(model), Found()
    paths = model_document(model, ROOT)["paths"]
    # By the document, less what would be our failure.
    promised = {
        call: {int(status) for status in paths[call]["post"]["responses"]} - {500} for call in calls
    }
    with progress.open("r+b", buffering=0) as told:
        for number in range(first, first + count):
            told.seek(0)
            told.write(b"%012d" % number)
            sent = mutator.request(number)
            started = time.process_time()
            status, headers, body = await send(api, sent)
            found.slowest = max(found.slowest, (time.process_time() - started, number))
            is_call = sent.method == "POST" and sent.path in promised
            allowed = promised[sent.path] if is_call else REFUSALS
            wrong = offence(status, headers, body, allowed)
            if wrong:
                found.offences.append(f"request {number} of seed {seed} ({sent.path}): {wrong}")
            found.statuses[f"{sent.path if sent.path in calls else 'other'} {status}"] += 1
            if (number - first + 1) % max(1, count // LOOKS) == 0:
                found.rss.append(resident())
    found.peak = peak()
    return found


def resident() -> float:
    """Return the memory of this process in MiB, after freed memory has gone back to the system."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MIB


def main() -> None:
    """Send, and print what came of it."""
    parser = argparse.ArgumentParser(description="Send mutated requests to a model.")
    parser.add_argument("bundle")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--progress", type=Path, required=True)
    given = parser.parse_args()
    faulthandler.enable()
    # Where the kernel gives huge pages to all who ask, memory is held 2 MiB at a time.
    ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    warnings.simplefilter("ignore")  # Pillow's, on damaged metadata
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    given.progress.write_bytes(b"")
    model = open_served(options_for(given.bundle))
    found = asyncio.run(hammer(model, given.seed, given.first, given.count, given.progress))
    model.close()
    answer: dict[str, Any] = {**vars(found), "statuses": dict(sorted(found.statuses.items()))}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
