"""The label map over HTTP: seen, changed, tried out, taken back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from models.errors import StorageError
from models.label_log import LabelLog, open_log
from models.label_revision import Revision
from serve_app.asgi import build_asgi
from serve_app.config import ServeOptions
from serve_app.keys import ADMIN, INFER, Keys, new_key
from serve_app.label_keeper import LabelKeeper
from serve_app.model import ServedModel, open_served
from tests.bundles import tiny_bundle
from tests.models.test_label_log import Careless
from tests.serve_app.conftest import Response, encode, refused

ROOT = "/v2/models/caps"
CLASSES = ("good", "dented", "torn")
OFFICE, OFFICE_ROW = new_key("office", [ADMIN])
LINE, LINE_ROW = new_key("line-4", [INFER])
AS_OFFICE = {"Authorization": f"Bearer {OFFICE}"}
AS_LINE = {"Authorization": f"Bearer {LINE}"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle of kind dynamic."""
    folder = tmp_path_factory.mktemp("models")
    return tiny_bundle(folder, name="caps", kind="dynamic", classes=CLASSES)


@pytest.fixture
def model(bundle: str, tmp_path: Path) -> Iterator[ServedModel]:
    """The model, which looks for new labels only when told to."""
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
    """A client with the admin key, of a server where scoring needs none."""
    app = build_asgi(model, Keys(OFFICE_ROW))
    url = f"http://test{ROOT}"
    with TestClient(app, base_url=url, root_path=ROOT, headers=AS_OFFICE) as client:
        yield client


def put(client: TestClient, *edits: dict[str, Any], **more: Any) -> Response:
    """Send edits."""
    return client.put("/labels", json={"edits": list(edits), **more})


def done(answer: Response) -> Any:
    """Return the body of an answer that has to be good."""
    assert answer.status_code == 200, answer.text
    return answer.json()


def rename(label: str, name: str) -> dict[str, Any]:
    """Return a rename as a client writes it."""
    return {"op": "rename", "label": label, "name": name}


def test_a_write_is_stored_told_and_answered_with_at_once(
    client: TestClient, log: LabelLog
) -> None:
    before = done(client.post("/classify", content=encode(3)))
    written = done(put(client, rename(before["label"], "other"), reason="a test"))
    assert (written["revision"], written["base"], written["dry_run"]) == (1, 0, False)
    assert written["replicas"] == {"asked": 1, "confirmed": 1}
    (change,) = written["changes"]
    assert (change["label"], change["field"], change["after"]) == (before["label"], "name", "other")
    assert change["text"].endswith("-> other")
    after = done(client.post("/classify", content=encode(3)))
    assert (after["label"], after["label_revision"]) == ("other", 1)
    stored = log.read(1)
    assert (stored.author, stored.key, stored.reason) == ("office", "office", "a test")


def test_a_change_can_be_made_where_the_newest_revision_is_of_no_use(
    client: TestClient, log: LabelLog
) -> None:
    """The number of an older one was told as the newest, and every change with that base refused:
    after a retrained version with another class, the page could change nothing any more.
    """
    put(client, {"op": "rename", "label": "good", "name": "fine"})
    log.store.write("000002.json", b"damaged")
    shown = done(client.get("/labels"))
    assert (shown["revision"], shown["map_revision"]) == (2, 1)
    assert client.get("/labels").headers["etag"] == '"2"'
    assert "000002.json" in shown["problem"]
    body = {
        "edits": [{"op": "rename", "label": "fine", "name": "sound"}],
        "base": shown["revision"],
    }
    written = done(client.put("/labels", json=body))
    assert (written["revision"], written["base"]) == (3, 2)


def test_the_labels_are_shown_with_their_revision(client: TestClient) -> None:
    first = client.get("/labels")
    assert first.headers["etag"] == '"0"'
    put(client, {"op": "hide", "label": "torn"}, author="ann")
    later = "2100-01-01T00:00:00+00:00"
    put(client, {"op": "hide", "label": "dented"}, effective_at=later)
    shown = done(client.get("/labels"))
    assert (shown["revision"], shown["in_effect"]) == (2, 1)
    assert (shown["author"], shown["effective_at"], shown["problem"]) == (
        "office",
        "2100-01-01T00:00:00+00:00",
        "",
    )
    statuses = {label["id"]: label["status"] for label in shown["map"]["labels"]}
    assert statuses == {"good": "active", "dented": "hidden", "torn": "hidden"}


def test_a_dry_run_stores_nothing_and_tells_what_would_be(client: TestClient) -> None:
    body = {"edits": [{"op": "merge", "labels": ["torn"], "into": "dented"}]}
    tried = done(client.put("/labels", params={"dry_run": "true"}, json=body))
    assert (tried["revision"], tried["dry_run"]) == (0, True)
    assert "replicas" not in tried
    what_if = tried["what_if"]
    assert (what_if["split"], what_if["num_images"]) == ("validation", 60)
    assert what_if["after"]["right"] >= what_if["before"]["right"]
    rows = {row["id"]: row for row in what_if["labels"]}
    assert rows["torn"]["after"] is None
    assert rows["dented"]["after"]["num_images"] == (
        rows["dented"]["before"]["num_images"] + rows["torn"]["before"]["num_images"]
    )
    assert done(client.get("/labels"))["revision"] == 0


def test_a_stale_base_is_412_with_the_current_revision(client: TestClient) -> None:
    put(client, rename("good", "one"))
    answer = put(client, rename("good", "two"), base=0)
    assert answer.status_code == 412
    assert answer.json()["code"] == "stale_base"
    assert answer.json()["revision"] == 1
    edits = {"edits": [rename("good", "two")]}
    assert client.put("/labels", json=edits, headers={"If-Match": '"0"'}).status_code == 412
    assert done(client.put("/labels", json=edits, headers={"If-Match": '"1"'}))["revision"] == 2


def test_of_many_writers_on_one_base_exactly_one_wins(client: TestClient) -> None:
    put(client, rename("good", "first"))

    def write(number: int) -> int:
        return put(client, rename("good", f"writer {number}"), base=1).status_code

    with ThreadPoolExecutor(16) as pool:
        statuses = sorted(pool.map(write, range(32)))
    assert statuses == [200] + [412] * 31


def test_a_write_that_is_sent_again_is_the_same_write(client: TestClient) -> None:
    body = {"edits": [rename("good", "ok")], "base": 0}
    headers = {"Idempotency-Key": "k1"}
    first = done(client.put("/labels", json=body, headers=headers))
    put(client, {"op": "hide", "label": "torn"})
    again = done(client.put("/labels", json=body, headers=headers))
    assert (first["revision"], again["revision"]) == (1, 1)
    assert first["changes"] == again["changes"]
    other = {"edits": [rename("good", "fine")]}
    answer = client.put("/labels", json={**other, "request_key": "k1"})
    refused(answer, 409, "request_key")
    assert done(client.get("/labels"))["revision"] == 2


def test_every_edit_that_cannot_be_done_is_told(client: TestClient) -> None:
    answer = put(client, {"op": "hide", "label": "god"}, rename("good", "ok"), {"op": "fly"})
    assert answer.status_code == 400
    assert answer.json()["code"] == "label_edit"
    assert [each["edit"] for each in answer.json()["edits"]] == [2]
    answer = put(client, {"op": "hide", "label": "god"}, rename("good", "ok"), rename("x", "y"))
    told = answer.json()["edits"]
    assert [each["edit"] for each in told] == [0, 2]
    assert "did you mean 'good'" in told[0]["error"]
    refused(put(client, rename("good", "DENTED")), 400, "label_map")
    assert done(client.get("/labels"))["revision"] == 0


def test_a_whole_map_is_published_on_its_base(client: TestClient) -> None:
    label_map = done(client.get("/labels"))["map"]
    label_map["labels"][0]["name"] = "fine"
    refused(client.put("/labels", json={"map": label_map}), 400, "label_map")
    done(client.put("/labels", json={"map": label_map, "base": 0}))
    assert done(client.get("/labels"))["map"] == label_map


def test_history_diff_and_rollback(client: TestClient) -> None:
    put(client, rename("good", "ok"), author="ann", reason="shorter")
    put(client, {"op": "hide", "label": "torn"})
    listed = done(client.get("/labels/revisions"))["revisions"]
    assert [each["number"] for each in listed] == [2, 1, 0]
    assert (listed[1]["author"], listed[1]["key"], listed[1]["reason"]) == (
        "ann",
        "office",
        "shorter",
    )
    assert [each["number"] for each in done(client.get("/labels/revisions?limit=1"))["revisions"]]
    one = done(client.get("/labels/revisions/1"))
    assert one["map"]["labels"][0]["name"] == "ok"
    refused(client.get("/labels/revisions/9"), 404, "not_found")
    refused(client.get("/labels/revisions/x"), 400, "bad_parameter")
    assert len(done(client.get("/labels/diff?since=0&to=2"))["changes"]) == 2
    assert len(done(client.get("/labels/diff"))["changes"]) == 1
    refused(client.get("/labels/diff?to=77"), 404, "not_found")
    tried = done(client.post("/labels/rollback?dry_run=1", json={"revision": 0}))
    assert len(tried["changes"]) == 2
    back = done(client.post("/labels/rollback", json={"revision": 0, "base": 2}))
    assert back["revision"] == 3
    assert done(client.get("/labels"))["map"] == done(client.get("/labels/revisions/0"))["map"]
    refused(client.post("/labels/rollback", json={"revision": 44}), 404, "not_found")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ([], "expected a JSON object"),
        ({}, 'either "edits" or "map"'),
        ({"edits": [], "map": {}}, 'either "edits" or "map"'),
        ({"edits": []}, "1 to 10,000 edits"),
        ({"edits": "x"}, "1 to 10,000 edits"),
        ({"edits": [1]}, "edit 0"),
        ({"map": 5}, "no label map"),
        ({"edits": [{"op": "hide", "label": "torn"}], "bas": 1}, "did you mean 'base'"),
        ({"edits": [{"op": "hide", "label": "torn"}], "base": -1}, "number of a revision"),
        ({"edits": [{"op": "hide", "label": "torn"}], "base": True}, "number of a revision"),
        ({"edits": [{"op": "hide", "label": "torn"}], "author": 5}, '"author" must be a text'),
        ({"edits": [{"op": "hide", "label": "torn"}], "reason": "x" * 2001}, "up to 2000"),
        ({"edits": [{"op": "hide", "label": "torn"}], "effective_at": "soon"}, "with its zone"),
        ({"edits": [{"op": "hide", "label": "torn"}], "effective_at": 5}, "with its zone"),
        (
            {"edits": [{"op": "hide", "label": "torn"}], "effective_at": "2030-01-01T00:00"},
            "with its zone",
        ),
        ({"edits": [{"op": "rename", "label": "good", "name": "\u0000"}]}, "do not print"),
        ({"edits": [{"op": "rename", "label": "good", "name": "x" * 201}]}, "200 characters"),
    ],
)
def test_a_wrong_write_is_refused_with_what_was_expected(
    client: TestClient, body: object, told: str
) -> None:
    answer = client.put("/labels", json=body)
    assert answer.status_code == 400, answer.text
    assert told in answer.json()["error"]
    assert done(client.get("/labels"))["revision"] == 0


def test_lookalike_letters_and_early_effects_are_noted(client: TestClient) -> None:
    put(client, rename("good", "later"), effective_at="2100-01-01T00:00Z")
    written = done(put(client, rename("torn", "\u043ek")))
    assert any("mixes letters of several alphabets" in note for note in written["notes"])
    assert any("revision 1 is to take effect at 2100" in note for note in written["notes"])


def test_changing_labels_needs_an_admin_key_and_seeing_them_a_key(model: ServedModel) -> None:
    app = build_asgi(model, Keys(f"{OFFICE_ROW}\n{LINE_ROW}"))
    edits = {"edits": [rename("good", "ok")]}
    with TestClient(app, base_url=f"http://test{ROOT}", root_path=ROOT) as client:
        for path in ("/labels", "/labels/revisions", "/config", "", "/stats"):
            refused(client.get(path), 401, "unauthenticated")
            assert client.get(path, headers=AS_LINE).status_code == 200
        refused(client.post("/classify", content=encode()), 401, "unauthenticated")
        refused(client.put("/labels", json=edits), 401, "unauthenticated")
        refused(client.put("/labels", json=edits, headers=AS_LINE), 403, "forbidden")
        body = {"revision": 0}
        refused(client.post("/labels/rollback", json=body, headers=AS_LINE), 403, "forbidden")
        assert client.put("/labels", json=edits, headers=AS_OFFICE).status_code == 200
        assert client.get("/ready").status_code == 200
    with TestClient(build_asgi(model), base_url=f"http://test{ROOT}", root_path=ROOT) as client:
        refused(client.put("/labels", json=edits, headers=AS_OFFICE), 403, "admin_closed")


def test_a_store_that_loses_writes_is_not_written_to(bundle: str, tmp_path: Path) -> None:
    options = ServeOptions(
        bundle=bundle, threads=1, label_store=str(tmp_path), label_poll_seconds=3600
    )
    model = open_served(options)
    assert isinstance(model.labels, LabelKeeper)
    model.labels.close()
    model.labels = LabelKeeper(
        LabelLog(Careless(str(tmp_path / "caps")), "caps", model.manifest.classes), 3600
    )
    app = build_asgi(model, Keys(OFFICE_ROW))
    with TestClient(
        app, base_url=f"http://test{ROOT}", root_path=ROOT, headers=AS_OFFICE
    ) as client:
        answer = put(client, rename("good", "ok"))
        assert "conditional writes" in refused(answer, 503, "label_store")
        told = done(client.get("/config"))["sightline"]["labels"]["write_problem"]
        assert "conditional writes" in told
        assert client.post("/classify", content=encode()).status_code == 200
    model.close()
    assert not list(tmp_path.rglob("*.json"))


def test_a_store_that_is_gone_stops_no_scoring(client: TestClient, tmp_path: Path) -> None:
    put(client, rename("good", "ok"))
    folder = tmp_path / "labels" / "caps"
    folder.rename(tmp_path / "away")
    folder.write_text("a file where the folder was")
    refused(put(client, rename("good", "fine")), 503, "label_store")
    shown = done(client.get("/labels"))
    assert "1 was seen there" in shown["problem"]
    assert shown["map"]["labels"][0]["name"] == "ok"
    assert client.post("/classify", content=encode()).status_code == 200


def test_a_model_whose_labels_are_fixed_has_no_such_calls(
    model: ServedModel, client: TestClient, tmp_path: Path
) -> None:
    fixed = open_served(ServeOptions(bundle=tiny_bundle(tmp_path), threads=1))
    root = "/v2/models/tiny"
    with TestClient(build_asgi(fixed), base_url=f"http://test{root}", root_path=root) as other:
        refused(other.get("/labels"), 404, "not_found")
    fixed.close()
    assert json.loads(client.get("/config").content)["sightline"]["has_label_map"] is True


def test_a_write_that_takes_too_long_says_that_it_may_be_stored(
    client: TestClient, log: LabelLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page called it refused, and seconds later the labels were others."""
    append = LabelLog.append

    def append_slowly(self: LabelLog, revision: Revision) -> Revision:
        time.sleep(0.5)
        return append(self, revision)

    monkeypatch.setattr("serve_app.labels_api.STORE_SECONDS", 0.2)
    monkeypatch.setattr(LabelLog, "append", append_slowly)
    told = refused(put(client, rename("good", "late")), 503, "label_store")
    assert "the change may be stored all the same" in told
    deadline = time.monotonic() + 10
    while log.head() < 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert log.read(1).map.find("late")
    told = refused(client.get("/labels/revisions/7"), 404, "not_found")
    assert "may be stored" not in told


def test_a_write_is_answered_as_stored_when_the_store_fails_behind_it(
    client: TestClient, log: LabelLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest, append = LabelLog.newest_sound, LabelLog.append

    def append_and_lose_the_store(self: LabelLog, revision: Revision) -> Revision:
        stored = append(self, revision)
        monkeypatch.setattr(LabelLog, "newest_sound", lose)
        return stored

    def lose(self: LabelLog, head: int) -> tuple[Revision, str]:
        raise StorageError("the bucket is gone")

    monkeypatch.setattr(LabelLog, "append", append_and_lose_the_store)
    written = done(put(client, rename("good", "kept")))
    assert (written["revision"], written["changes"]) == (1, [])
    assert written["notes"] == ["what it changed cannot be told now: the bucket is gone"]
    monkeypatch.setattr(LabelLog, "newest_sound", newest)
    assert log.read(1).map.find("kept")
