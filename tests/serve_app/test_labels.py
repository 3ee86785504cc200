"""A model whose labels change while it answers."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

import serve_app.label_keeper
from models.errors import ConfigError
from models.label_edits import Edit, Hide, Merge, Rename, SetThreshold
from models.label_log import LabelLog, open_log
from models.label_map import Reading
from models.label_revision import Author
from models.storage import Store
from serve_app.asgi import build_asgi
from serve_app.config import ServeOptions
from serve_app.errors import RequestError
from serve_app.label_keeper import LabelKeeper
from serve_app.model import ServedModel, open_served
from tests.bundles import tiny_bundle
from tests.serve_app.conftest import encode, refused

ROOT = "/v2/models/caps"
CLASSES = ("good", "dented", "torn")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle of kind dynamic."""
    folder = tmp_path_factory.mktemp("models")
    return tiny_bundle(folder, name="caps", kind="dynamic", classes=CLASSES)


@pytest.fixture
def model(bundle: str, tmp_path: Path) -> Iterator[ServedModel]:
    """The model, which looks for new labels only when asked to."""
    options = ServeOptions(
        bundle=bundle, threads=1, label_store=str(tmp_path / "labels"), label_poll_seconds=3600
    )
    model = open_served(options)
    yield model
    model.close()


@pytest.fixture
def log(model: ServedModel, tmp_path: Path) -> LabelLog:
    """The log that the model follows."""
    return open_log(str(tmp_path / "labels"), "caps", model.manifest.classes)


@pytest.fixture
def client(model: ServedModel) -> Iterator[TestClient]:
    """A client of the model."""
    url = f"http://test{ROOT}"
    with TestClient(build_asgi(model), base_url=url, root_path=ROOT) as client:
        yield client


def write(log: LabelLog, *edits: Edit, at: datetime | None = None) -> int:
    """Write one revision and return its number."""
    author = Author("ann", "a test", effective_at=at)
    return log.write(edits, author).number


def classify(client: TestClient, **query: Any) -> Any:
    """Return the answer for one image."""
    answer = client.post("/classify", params=query, content=encode(3))
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_an_answer_names_the_revision_and_reads_its_own_write(
    client: TestClient, log: LabelLog
) -> None:
    before = classify(client)
    assert before["label_revision"] == 0
    winner = before["label"]
    number = write(log, Rename(label=winner, name="another name"))
    assert classify(client)["label"] == winner  # nobody has looked yet
    after = classify(client, min_revision=number)
    assert (after["label"], after["label_revision"]) == ("another name", 1)
    assert after["confidence"] == before["confidence"]
    assert classify(client) == after  # and it does not go back


def test_merged_labels_sum_and_a_hidden_winner_is_unknown(
    client: TestClient, log: LabelLog
) -> None:
    scores = {each["label"]: each["probability"] for each in classify(client)["scores"]}
    first, second, third = scores
    number = write(log, Merge(labels=(second,), into=first))
    merged = classify(client, min_revision=number)
    assert merged["label"] == first
    assert merged["confidence"] == pytest.approx(scores[first] + scores[second])
    assert [each["label"] for each in merged["scores"]] == [first, third]
    hidden = classify(client, min_revision=write(log, Hide(label=first)))
    assert hidden["label"] == "unknown"
    assert [each["label"] for each in hidden["scores"]] == [third]
    strict = write(log, SetThreshold(threshold=1.0))
    assert classify(client, min_revision=strict)["label"] == "unknown"


def test_the_open_inference_protocol_answers_with_the_same_labels(
    client: TestClient, log: LabelLog
) -> None:
    winner = classify(client)["label"]
    number = write(log, Rename(label=winner, name="Schön: gut"))
    classify(client, min_revision=number)
    answer = client.post(
        "/infer", content=encode(3), headers={"Inference-Header-Content-Length": "0"}
    )
    assert "Schön: gut".encode() in answer.content


def test_an_infer_call_reads_its_own_write_and_names_the_revision(
    client: TestClient, log: LabelLog
) -> None:
    data = [base64.b64encode(encode(3)).decode()]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": data}

    def infer(least: int) -> Any:
        request = {"inputs": [tensor], "parameters": {"min_revision": least}}
        return client.post("/infer", json=request)

    assert infer(0).json()["parameters"] == {"label_revision": 0}
    number = write(log, Rename(label=classify(client)["label"], name="ok"))
    assert infer(0).json()["parameters"] == {"label_revision": 0}
    answer = infer(number).json()
    assert answer["parameters"] == {"label_revision": number}
    assert {output["name"]: output["data"] for output in answer["outputs"]}["label"] == ["ok"]
    assert f"label revision {number + 1}" in refused(infer(number + 1), 409, "label_revision")


def test_config_tells_where_the_labels_of_the_replica_stand(
    client: TestClient, log: LabelLog
) -> None:
    number = write(log, Rename(label="good", name="ok"), Hide(label="torn"))
    later = write(log, Rename(label="good", name="fine"), at=datetime(2100, 1, 1, tzinfo=UTC))
    classify(client, min_revision=number)
    status = client.get("/config").json()["sightline"]["labels"]
    assert status == {
        "revision": number,
        "names": ["ok", "dented", "torn"],
        "newest": later,
        "waiting": [{"revision": later, "effective_at": "2100-01-01T00:00:00+00:00"}],
        "problem": "",
        "write_problem": "",
    }


def test_a_revision_that_is_not_there_is_a_conflict(client: TestClient) -> None:
    answer = client.post("/classify", params={"min_revision": 7}, content=encode())
    assert "7 is not in effect here, 0 is" in refused(answer, 409, "label_revision")
    answer = client.post("/classify", params={"min_revision": "x"}, content=encode())
    refused(answer, 400, "bad_parameter")


def test_a_revision_for_later_is_read_from_its_instant_on(
    client: TestClient, log: LabelLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    winner = classify(client)["label"]
    at = datetime(2100, 1, 1, tzinfo=UTC)
    now = [at.timestamp() - 0.001]
    monkeypatch.setattr("serve_app.label_keeper.time.time", lambda: now[0])
    number = write(log, Rename(label=winner, name="later"), at=at)
    refused(
        client.post("/classify", params={"min_revision": number}, content=encode(3)),
        409,
        "label_revision",
    )
    assert classify(client)["label"] == winner
    now[0] = at.timestamp()
    assert classify(client)["label"] == "later"  # without looking into the log again


def test_a_broken_or_unreachable_log_never_stops_scoring(
    client: TestClient, log: LabelLog, model: ServedModel, tmp_path: Path
) -> None:
    winner = classify(client)["label"]
    write(log, Rename(label=winner, name="sound"))
    keeper = model.labels
    assert isinstance(keeper, LabelKeeper)
    keeper.refresh()
    (tmp_path / "labels" / "caps" / "000002.json").write_text("{")
    assert keeper.refresh() == 2
    assert "000002.json" in keeper.status()["problem"]
    assert classify(client)["label"] == "sound"
    number = write(log, Rename(label=winner, name="mended"))
    assert classify(client, min_revision=number)["label"] == "mended"
    assert keeper.status()["problem"] == ""
    (tmp_path / "labels" / "caps").rename(tmp_path / "away")
    (tmp_path / "labels" / "caps").write_text("a file where the folder was")
    keeper.refresh()
    assert keeper.status()["problem"]
    assert classify(client)["label"] == "mended"
    (tmp_path / "labels" / "caps").unlink()
    (tmp_path / "away").rename(tmp_path / "labels" / "caps")
    keeper.refresh()
    assert keeper.status()["problem"] == ""
    dead = LabelKeeper(open_log("s3://no-such-bucket-here", "caps", model.manifest.classes), 3600)
    assert dead.current().revision == 0
    assert dead.status()["problem"]
    dead.close()


def test_a_replica_that_starts_does_not_wait_for_a_store_that_hangs(
    model: ServedModel, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took a minute more to start, where a store that was away took none."""
    monkeypatch.setattr(serve_app.label_keeper, "FIRST_SECONDS", 0.5)
    for name, value in (("ENDPOINT_URL", silent), ("ACCESS_KEY_ID", "k"), ("REGION", "r")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    began = time.monotonic()
    keeper = LabelKeeper(open_log("s3://hangs/labels", "caps", model.manifest.classes), 3600)
    assert time.monotonic() - began < 30
    assert keeper.current().revision == 0
    assert "has not answered for 0.5 s" in keeper.status()["problem"]
    assert keeper.num_failures == 1
    keeper.close()


def test_labels_that_come_late_at_a_start_are_taken_up(
    log: LabelLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(log, Rename(label="good", name="fine"))
    monkeypatch.setattr(serve_app.label_keeper, "FIRST_SECONDS", 0.1)
    answers = threading.Event()
    head = LabelLog.head

    def late(log: LabelLog) -> int:
        answers.wait(20)
        return head(log)

    monkeypatch.setattr(LabelLog, "head", late)
    keeper = LabelKeeper(log, 0.02)
    assert (keeper.current().revision, bool(keeper.status()["problem"])) == (0, True)
    answers.set()
    deadline = time.monotonic() + 20
    while keeper.current().revision == 0 or keeper.status()["problem"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert keeper.current().label_map.find("good").name == "fine"
    keeper.close()


def test_a_replica_that_starts_reads_what_counts_now(model: ServedModel, log: LabelLog) -> None:
    write(log, Rename(label="good", name="one"))
    later = datetime.now(UTC) + timedelta(hours=1)
    write(log, Rename(label="good", name="two"), at=later)
    write(log, Rename(label="good", name="three"), at=later)
    keeper = LabelKeeper(log, 3600)
    assert keeper.current().revision == 1
    assert [each["revision"] for each in keeper.status()["waiting"]] == [2, 3]
    assert write(log, Rename(label="good", name="now")) == 4
    assert keeper.refresh() == 4
    assert keeper.current().label_map.find("good").name == "now"
    assert keeper.status()["waiting"] == []
    keeper.close()


def test_a_revision_that_is_taken_up_while_the_status_is_told_does_no_harm(
    log: LabelLog,
) -> None:
    """It has no time to wait for, and `/config` answered 500."""

    class Busy(LabelKeeper):
        """Has news each time that it was asked what counts now."""

        def current(self) -> Reading:
            reading = super().current()
            self.refresh()
            return reading

    keeper = Busy(log, 3600)
    number = write(log, Rename(label="good", name="one"))
    assert keeper.status()["waiting"] == []
    assert keeper.status()["revision"] == number
    keeper.close()


def test_a_clock_that_is_set_back_takes_no_labels_away(
    client: TestClient, log: LabelLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = datetime.now(UTC) + timedelta(seconds=0.3)
    number = write(log, Rename(label="good", name="due"), at=at)
    write(log, Rename(label="good", name="later"), at=datetime(2100, 1, 1, tzinfo=UTC))
    time.sleep(0.4)
    assert classify(client, min_revision=number)["label_revision"] == number
    before = time.time() - 3600
    monkeypatch.setattr("serve_app.label_keeper.time.time", lambda: before)
    assert classify(client)["label_revision"] == number


def test_a_revision_that_was_fetched_before_its_time_stays_when_the_clock_is_set_back(
    log: LabelLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was forgotten only when the next one was taken up."""
    at = datetime(2100, 1, 1, tzinfo=UTC)
    number = write(log, Rename(label="good", name="due"), at=at)
    keeper = LabelKeeper(log, 3600)
    assert keeper.current().revision == 0
    now = [at.timestamp() + 1]
    monkeypatch.setattr("serve_app.label_keeper.time.time", lambda: now[0])
    assert keeper.current().revision == number
    now[0] -= 3600
    assert keeper.current().revision == number
    assert keeper.status()["waiting"] == []
    keeper.close()


def test_a_revision_of_the_last_day_of_all_is_told_like_any_other(log: LabelLog) -> None:
    zone = timezone(timedelta(hours=-5))
    write(log, Rename(label="good", name="due"), at=datetime(9999, 12, 31, 23, tzinfo=zone))
    keeper = LabelKeeper(log, 3600)
    (waiting,) = keeper.status()["waiting"]
    assert waiting["effective_at"].year == 9999
    keeper.close()


def test_a_hole_in_the_log_is_told_and_passed_over(log: LabelLog, tmp_path: Path) -> None:
    write(log, Rename(label="good", name="one"))
    write(log, Rename(label="good", name="two"))
    write(log, Rename(label="good", name="three"), at=datetime(2100, 1, 1, tzinfo=UTC))
    (tmp_path / "labels" / "caps" / "000002.json").unlink()
    keeper = LabelKeeper(log, 3600)
    assert keeper.current().revision == 1
    assert "000002.json" in keeper.status()["problem"]
    keeper.close()


def test_the_log_is_looked_at_again_and_again(model: ServedModel, log: LabelLog) -> None:
    keeper = LabelKeeper(log, 0.02)
    number = write(log, Rename(label="good", name="seen"))
    deadline = time.monotonic() + 10
    while keeper.current().revision < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    keeper.close()


@pytest.mark.slow
def test_every_answer_under_a_hail_of_revisions_is_what_its_revision_says(
    client: TestClient, log: LabelLog, model: ServedModel
) -> None:
    keeper = LabelKeeper(log, 0.005)
    probabilities = np.array([0.5, 0.3, 0.2], np.float32)
    seen: list[tuple[int, str]] = []
    done = threading.Event()

    def score() -> None:
        last = -1
        while not done.is_set():
            reading = keeper.current()
            assert reading.revision >= last
            last = reading.revision
            seen.append((last, reading.read(probabilities, scores="none").label))

    with ThreadPoolExecutor(4) as pool:
        scoring = [pool.submit(score) for _ in range(4)]
        for number in range(100):
            write(log, Rename(label="good", name=f"name {number}"))
        done.set()
        for each in scoring:
            each.result()
    keeper.close()
    said = {
        number: Reading(log.read(number).map, log.classes, number)
        .read(probabilities, scores="none")
        .label
        for number in {revision for revision, _ in seen}
    }
    assert len(said) > 1
    assert all(said[revision] == label for revision, label in seen)


def test_a_label_store_is_for_models_with_a_label_map_and_they_need_one(
    bundle: str, bundle_uri: str
) -> None:
    with pytest.raises(ConfigError, match="which has a label map: set `label_store`"):
        open_served(ServeOptions(bundle=bundle))
    with pytest.raises(ConfigError, match="which has no label map: remove `label_store`"):
        open_served(ServeOptions(bundle=bundle_uri, label_store="labels"))


class Slow(Store):
    """A store that takes its time, as one behind a bad line does; `looks` counts."""

    seconds = 0.3
    looks = 0

    def exists(self, key: str) -> bool:
        Slow.looks += 1
        time.sleep(self.seconds)
        return super().exists(key)


def test_requests_that_ask_for_one_revision_share_a_look_into_the_log(
    model: ServedModel, log: LabelLog
) -> None:
    write(log, Rename(label="good", name="one"))
    keeper = LabelKeeper(LabelLog(Slow(log.store.uri), "caps", log.classes), 3600)
    number = write(log, Rename(label="good", name="two"))
    Slow.looks = 0

    async def ask() -> list[int]:
        asked = (keeper.at_least(number) for _ in range(50))
        return [reading.revision for reading in await asyncio.gather(*asked)]

    assert asyncio.run(ask()) == [number] * 50
    # One look finds it and asks for the one after it; a second may have been wanted meanwhile.
    assert Slow.looks <= 4
    keeper.close()


def test_a_slow_store_keeps_nobody_waiting_for_long(
    model: ServedModel, log: LabelLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(log, Rename(label="good", name="one"))
    keeper = LabelKeeper(LabelLog(Slow(log.store.uri), "caps", log.classes), 3600)
    monkeypatch.setattr(Slow, "seconds", 3.0)
    monkeypatch.setattr("serve_app.label_keeper.PATIENCE_SECONDS", 0.2)

    async def ask() -> float:
        started = time.monotonic()
        with pytest.raises(RequestError, match="the label store has not answered"):
            await keeper.at_least(7)
        assert (await keeper.at_least(1)).revision == 1
        return time.monotonic() - started

    assert asyncio.run(ask()) < 2
    keeper.close()
