"""Labels that change under load, through real Serve and HAProxy, on two replicas."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from models.bundle import open_bundle
from models.label_edits import Edit, Hide, Merge, Rename, Restore, SplitBack
from models.label_log import Author, LabelLog, open_log
from models.label_map import Reading
from tests.bundles import tiny_bundle
from tests.serve_app.conftest import Server, encode, run_application

pytestmark = [pytest.mark.e2e, pytest.mark.ray]

NUM_CHANGES = 200
NUM_CLIENTS = 16
ANN = Author("ann", "a test")


@dataclass(frozen=True)
class Served:
    """A dynamic model that is up, and the log of its labels."""

    url: str
    log: LabelLog


@pytest.fixture
def served(server: Server, tmp_path: Path) -> Iterator[Served]:
    """A model of kind dynamic on two replicas."""
    from ray import serve

    uri = tiny_bundle(tmp_path, name="caps", kind="dynamic", classes=("good", "dented", "torn"))
    store = str(tmp_path / "labels")
    args = {
        "bundle": uri,
        "replicas": 2,
        "num_cpus": 0.1,
        "label_store": store,
        "label_poll_seconds": 0.2,
    }
    prefix = "/v2/models/caps"
    application = {
        "import_path": "serve_app.app:build",
        "name": "caps",
        "route_prefix": prefix,
    }
    run_application(application, args)
    classes = open_bundle(uri).manifest.classes
    yield Served(f"{server.url}{prefix}", open_log(store, "caps", classes))
    serve.delete("caps")


def edits() -> Iterator[tuple[Edit, ...]]:
    """Yield changes that can be made one after the other for ever."""
    for number in itertools.count():
        yield (Rename(label="good", name=f"good {number}"),)
        yield (Hide(label="good"),)
        yield (Restore(label="good"), Rename(label="dented", name=f"dented {number}"))
        yield (Merge(labels=("good",), into="torn"),)
        yield (SplitBack(label="good"),)


def test_no_request_fails_and_every_answer_is_what_its_revision_says(served: Served) -> None:
    image, url = encode(3), f"{served.url}/classify"
    first = httpx.post(url, params={"scores": "all"}, content=image, timeout=30).json()
    chances = {each["label"]: each["probability"] for each in first["scores"]}
    probabilities = np.array([chances[each.id] for each in served.log.classes], np.float32)
    answers: list[tuple[int, str, float]] = []
    statuses: Counter[int] = Counter()
    done = threading.Event()

    def score() -> None:
        with httpx.Client(timeout=30) as client:
            while not done.is_set():
                answer = client.post(url, content=image)
                statuses[answer.status_code] += 1
                told: dict[str, Any] = answer.json()
                answers.append((told["label_revision"], told["label"], told["confidence"]))

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        scoring = [pool.submit(score) for _ in range(NUM_CLIENTS)]
        try:
            with httpx.Client(timeout=30) as writer:
                for change in itertools.islice(edits(), NUM_CHANGES):
                    written = served.log.append(served.log.edited(change, ANN)).number
                    # Whichever replica answers, it has what was just written.
                    read = writer.post(url, params={"min_revision": written}, content=image)
                    assert read.status_code == 200, read.text
                    assert read.json()["label_revision"] == written
        finally:
            done.set()
        for each in scoring:
            each.result()
    assert set(statuses) == {200}
    assert served.log.head() == NUM_CHANGES
    expected = {}
    for number in {revision for revision, _, _ in answers}:
        revision = served.log.read(number)
        answer = Reading(revision.map, served.log.classes, number).read(probabilities)
        expected[number] = answer
    assert len(expected) > NUM_CHANGES / 10
    for number, label, confidence in answers:
        assert label == expected[number].label
        assert confidence == pytest.approx(expected[number].confidence, abs=1e-6)


def test_both_replicas_take_up_a_revision_by_themselves(served: Served) -> None:
    written = served.log.append(served.log.edited([Hide(label="torn")], ANN)).number
    threading.Event().wait(1.0)  # five looks into the log
    with httpx.Client(timeout=30) as client:
        seen = [
            client.post(f"{served.url}/classify", content=encode()).json()["label_revision"]
            for _ in range(20)
        ]
    assert set(seen) == {written}
