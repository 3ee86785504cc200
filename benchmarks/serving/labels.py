"""How soon a change of labels is in every answer, under load."""

from __future__ import annotations

import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from benchmarks.serving.steps import Figures
from benchmarks.wire import Request

NUM_CHANGES = 20
NUM_CLIENTS = 4
SECONDS = 30.0

# When a request was asked, and the revision of the labels that answered it.
Seen = list[tuple[float, int]]


def measure_labels(url: str, image: Request, label: str, key: str) -> Figures:
    """Rename `label` again and again, with an admin key, while clients ask the model at `url`, and
    return the milliseconds from sending a change until every answer has it.

    That is the change's own answer, which says that all replicas have it, or the last request asked
    afterwards that was still answered without it. Raises `RuntimeError` if a change is refused or
    does not reach all replicas.
    """
    seen: Seen = []
    done = threading.Event()
    changes = []
    headers = dict(image.headers)
    with (
        ThreadPoolExecutor(NUM_CLIENTS) as pool,
        httpx.Client(
            base_url=url, timeout=SECONDS, headers={"Authorization": f"Bearer {key}"}
        ) as writer,
    ):
        asking = [
            pool.submit(_ask_until, done, url, image.body, headers, seen)
            for _ in range(NUM_CLIENTS)
        ]
        try:
            for number in range(NUM_CHANGES):
                edit = {"op": "rename", "label": label, "name": f"name {number}"}
                sent = time.monotonic()
                answer = writer.put("labels", json={"edits": [edit]})
                told = time.monotonic()
                replicas = answer.json().get("replicas", {})
                if answer.status_code != 200 or replicas.get("asked") != replicas.get("confirmed"):
                    raise RuntimeError(f"labels: {answer.status_code}: {answer.text[:200]}")
                changes.append((answer.json()["revision"], sent, told))
        finally:
            done.set()
        for each in asking:
            each.result()
    spans = [seconds_to_all(revision, sent, told, seen) for revision, sent, told in changes]
    return {
        "median_ms": statistics.median(spans) * 1e3,
        "most_ms": max(spans) * 1e3,
        "replicas": replicas.get("asked", 0),
    }


def seconds_to_all(revision: int, sent: float, told: float, seen: Seen) -> float:
    """Return the time from sending a change until nobody is answered without it any more."""
    late = [asked for asked, answered_with in seen if answered_with < revision]
    return max([told, *late]) - sent


def _ask_until(
    done: threading.Event, url: str, body: bytes, headers: dict[str, str], seen: Seen
) -> None:
    with httpx.Client(base_url=url, headers=headers, timeout=SECONDS) as client:
        while not done.is_set():
            asked = time.monotonic()
            answer = client.post("classify", content=body).raise_for_status()
            seen.append((asked, answer.json()["label_revision"]))
