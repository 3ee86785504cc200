"""Labels that change under load, through real Serve and HAProxy, on two replicas."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest

from models.bundle import open_bundle
from models.label_log import LabelLog, open_log
from models.label_map import Reading
from serve_app.keys import ADMIN, new_key
from tests.bundles import tiny_bundle
from tests.serve_app.conftest import Server, encode, run_application

pytestmark = [pytest.mark.e2e, pytest.mark.ray]

NUM_CHANGES = 200
NUM_CLIENTS = 16
OFFICE, OFFICE_ROW = new_key("office", [ADMIN])
AS_OFFICE = {"Authorization": f"Bearer {OFFICE}"}
MS_TO_ALL_REPLICAS = 100  # in the median, with every client asking as fast as it can

Edits = list[dict[str, Any]]


@dataclass(frozen=True)
class Served:
    """A dynamic model that is up, and the log of its labels."""

    url: str
    log: LabelLog

    def put(self, client: httpx.Client, edits: Edits, **more: Any) -> httpx.Response:
        """Change the labels over HTTP."""
        body = {"edits": edits, **more}
        return client.put(f"{self.url}/labels", json=body, headers=AS_OFFICE)


@pytest.fixture(scope="module")
def served(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model of kind dynamic on two replicas, which hardly ever look for labels by themselves."""
    from ray import serve

    folder = tmp_path_factory.mktemp("labels")
    uri = tiny_bundle(folder, name="caps", kind="dynamic", classes=("good", "dented", "torn"))
    (folder / "keys").write_text(OFFICE_ROW)
    store = str(folder / "labels")
    args = {
        "bundle": uri,
        "replicas": 2,
        "num_cpus": 0.1,
        "label_store": store,
        "label_poll_seconds": 5,
        "keys_file": str(folder / "keys"),
    }
    prefix = "/v2/models/caps"
    application = {
        "import_path": "serve_app.app:build",
        "name": "caps",
        "route_prefix": prefix,
    }
    run_application(server, application, args)
    classes = open_bundle(uri).manifest.classes
    yield Served(f"{server.url}{prefix}", open_log(store, "caps", classes))
    serve.delete("caps")


def edits() -> Iterator[Edits]:
    """Yield changes that can be made one after the other for ever."""

    def rename(label: str, name: str) -> dict[str, Any]:
        return {"op": "rename", "label": label, "name": name}

    for number in itertools.count():
        yield [rename("good", f"good {number}")]
        yield [{"op": "hide", "label": "good"}]
        yield [{"op": "restore", "label": "good"}, rename("dented", f"dented {number}")]
        yield [{"op": "merge", "labels": ["good"], "into": "torn"}]
        yield [{"op": "split-back", "label": "good"}]


@dataclass
class Seen:
    """What the clients were answered: when it was asked, when answered, and what it said."""

    statuses: Counter[int] = field(default_factory=Counter)
    answers: list[tuple[float, float, int, str, float]] = field(default_factory=list)


def score_until(done: threading.Event, url: str, image: bytes, seen: Seen) -> None:
    """Ask again and again."""
    with httpx.Client(timeout=30) as client:
        while not done.is_set():
            asked = time.monotonic()
            answer = client.post(url, content=image)
            seen.statuses[answer.status_code] += 1
            told: dict[str, Any] = answer.json()
            seen.answers.append(
                (
                    asked,
                    time.monotonic(),
                    told["label_revision"],
                    told["label"],
                    told["confidence"],
                )
            )


def test_no_request_fails_and_every_answer_is_what_its_revision_says(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    image, url = encode(3), f"{served.url}/classify"
    first = httpx.post(url, params={"scores": "all"}, content=image, timeout=30).json()
    chances = {each["label"]: each["probability"] for each in first["scores"]}
    probabilities = np.array([chances[each.id] for each in served.log.classes], np.float32)
    seen, done = Seen(), threading.Event()
    acknowledged: dict[int, float] = {}
    took: list[float] = []
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        scoring = [pool.submit(score_until, done, url, image, seen) for _ in range(NUM_CLIENTS)]
        try:
            with httpx.Client(timeout=30) as writer:
                for change in itertools.islice(edits(), NUM_CHANGES):
                    started = time.monotonic()
                    answer = served.put(writer, change)
                    acknowledged_at = time.monotonic()
                    assert answer.status_code == 200, answer.text
                    written = answer.json()["revision"]
                    assert answer.json()["replicas"] == {"asked": 2, "confirmed": 2}
                    acknowledged[written] = acknowledged_at
                    took.append(acknowledged_at - started)
                    # Whichever replica answers, it has what was just written.
                    read = writer.post(url, params={"min_revision": written}, content=image)
                    assert read.status_code == 200, read.text
                    assert read.json()["label_revision"] == written
        finally:
            done.set()
        for each in scoring:
            each.result()
    assert set(seen.statuses) == {200}
    assert served.log.head() == NUM_CHANGES
    expected = {}
    for number in {revision for _, _, revision, _, _ in seen.answers}:
        revision = served.log.read(number)
        expected[number] = Reading(revision.map, served.log.classes, number).read(probabilities)
    assert len(expected) > NUM_CHANGES / 10
    for _, _, number, label, confidence in seen.answers:
        assert label == expected[number].label
        assert confidence == pytest.approx(expected[number].confidence, abs=1e-6)
    to_all = _until_all_answer_with(acknowledged, seen)
    with capsys.disabled():
        print(
            f"\n{NUM_CHANGES} label changes under {NUM_CLIENTS} clients, "
            f"{len(seen.answers)} requests, none failed; a write takes "
            f"{statistics.median(took) * 1000:.1f} ms, and all replicas answer with it "
            f"{statistics.median(to_all) * 1000:.1f} ms after it is acknowledged "
            f"(median; at most {max(to_all) * 1000:.1f} ms)"
        )
    assert statistics.median(to_all) * 1000 < MS_TO_ALL_REPLICAS


def _until_all_answer_with(acknowledged: dict[int, float], seen: Seen) -> list[float]:
    """Return for each write how long after its acknowledgement the last request was asked that
    was still answered with an older revision, 0 where there was none: from then on all replicas
    answer with it.
    """
    spans = []
    for number, at in acknowledged.items():
        late = [asked - at for asked, _, revision, _, _ in seen.answers if revision < number]
        spans.append(max(0.0, max(late, default=0.0)))
    return spans


def test_both_replicas_take_up_a_revision_that_nobody_told_them_of(served: Served) -> None:
    from models.label_edits import Hide
    from models.label_revision import Author

    written = served.log.write([Hide(label="torn")], Author("ann", "past the server")).number
    deadline = time.monotonic() + 20
    with httpx.Client(timeout=30) as client:
        while True:
            seen = {
                client.post(f"{served.url}/classify", content=encode()).json()["label_revision"]
                for _ in range(20)
            }
            if seen == {written}:
                break
            assert time.monotonic() < deadline, seen
            time.sleep(0.5)


def test_all_replicas_switch_at_the_same_instant(served: Served) -> None:
    from datetime import UTC, datetime, timedelta

    at = datetime.now(UTC) + timedelta(seconds=2)
    seen, done = Seen(), threading.Event()
    url, image = f"{served.url}/classify", encode(3)
    with httpx.Client(timeout=30) as client, ThreadPoolExecutor(4) as pool:
        edit = {"op": "rename", "label": "dented", "name": "from the instant on"}
        written = served.put(client, [edit], effective_at=at.isoformat()).json()["revision"]
        offset = time.time() - time.monotonic()
        scoring = [pool.submit(score_until, done, url, image, seen) for _ in range(4)]
        time.sleep(max(0.0, at.timestamp() - time.time()) + 1)
        done.set()
        for each in scoring:
            each.result()
    instant = at.timestamp() - offset
    assert {number for _, _, number, _, _ in seen.answers} == {written - 1, written}
    for asked, answered, number, _, _ in seen.answers:
        if answered < instant:
            assert number == written - 1
        if asked > instant:
            assert number == written


def test_of_two_hundred_writers_over_http_exactly_one_wins(served: Served) -> None:
    base = served.log.head()

    def write(number: int) -> tuple[int, int]:
        with httpx.Client(timeout=60) as client:
            edit = {"op": "rename", "label": "dented", "name": f"writer {number}"}
            answer = served.put(client, [edit], base=base)
            return answer.status_code, answer.json()["revision"]

    with ThreadPoolExecutor(50) as pool:
        outcomes = Counter(pool.map(write, range(200)))
    assert outcomes == {(200, base + 1): 1, (412, base + 1): 199}


def test_a_replica_that_hangs_is_not_counted_as_told_and_catches_up(served: Served) -> None:
    from ray.serve.context import _get_global_client

    application = _get_global_client().get_serve_details()["applications"]["caps"]
    hanging = application["deployments"]["model"]["replicas"][0]["pid"]
    os.kill(hanging, signal.SIGSTOP)
    try:
        answer = _put_until_answered(served, [{"op": "alias", "label": "dented", "add": ["bent"]}])
    finally:
        os.kill(hanging, signal.SIGCONT)
    assert answer["replicas"] == {"asked": 2, "confirmed": 1}
    with httpx.Client(timeout=30) as client:
        for _ in range(20):
            query = {"min_revision": answer["revision"]}
            read = client.post(f"{served.url}/classify", params=query, content=encode())
            assert read.json()["label_revision"] == answer["revision"]


def _put_until_answered(served: Served, edits: Edits) -> Any:
    """Send one write until it meets a replica that answers; all tries are one write."""
    for _ in range(10):
        with contextlib.suppress(httpx.TimeoutException), httpx.Client(timeout=6) as client:
            answer = served.put(client, edits, request_key="while one hangs")
            assert answer.status_code == 200, answer.text
            return answer.json()
    raise AssertionError("no replica answers")


def test_statistics_are_those_of_all_replicas(server: Server, served: Served) -> None:
    with httpx.Client(timeout=30) as client:
        before = client.get(f"{served.url}/stats").json()
        for _ in range(20):
            client.post(f"{served.url}/classify", content=encode())
        after = client.get(f"{served.url}/stats").json()
        assert before["replicas"] == after["replicas"] == 2
        counts = [each["model_stats"][0]["inference_count"] for each in (before, after)]
        assert counts[1] == counts[0] + 20
        every = client.get(f"{server.url}/v2/models/stats").json()["model_stats"]
        found = {(each["name"], each["inference_count"]) for each in every}
        assert ("caps", counts[1]) in found
