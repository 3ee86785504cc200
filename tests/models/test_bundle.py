"""Publishing and opening: nothing half-written is ever seen, nothing changed is ever loaded."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

import models.bundle
from cluster.environment import free_port
from models.bundle import (
    MANIFEST,
    Published,
    describe_file,
    list_versions,
    newest_model,
    newest_version,
    open_bundle,
    publish,
)
from models.errors import BundleError, DigestError, ManifestError, NotFoundError, StorageError
from models.manifest import Manifest
from models.storage import open_store
from tests.bundles import tiny_bundle
from tests.conftest import S3Server

CLASSES = [{"id": "good", "name": "good"}, {"id": "bad", "name": "bad"}]


def draft(folder: Path, content: bytes = b"graph", name: str = "part") -> Manifest:
    """Write a small draft into a folder and return its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(content)
    (folder / "card.md").write_text("card")
    return Manifest.model_validate(
        {
            "name": name,
            "version": 1,
            "kind": "generic",
            "created": "2026-01-01T00:00:00Z",
            "run_id": "r",
            "code_revision": "c",
            "config_digest": "d",
            "preprocess": {},
            "outputs": {"probabilities": 2, "embedding": 4},
            "classes": CLASSES,
            "artifacts": [
                describe_file(folder / "model.onnx", engine="openvino", precision="fp32"),
                describe_file(folder / "card.md"),
            ],
        }
    )


def publish_draft(store: Path | str, folder: Path, content: bytes = b"graph") -> Published:
    """Publish a small draft."""
    return publish(store, draft(folder, content), folder)


def test_a_published_bundle_opens_with_the_same_bytes(tmp_path: Path) -> None:
    published = publish_draft(tmp_path / "models", tmp_path / "draft", b"graph one")
    bundle = open_bundle(published.uri, cache=tmp_path / "cache")
    assert bundle.manifest == published.manifest
    assert bundle.path("model.onnx").read_bytes() == b"graph one"


def test_it_works_the_same_in_a_bucket(s3_server: S3Server, tmp_path: Path) -> None:
    store = s3_server.make_bucket("bundles") + "/models"
    publish_draft(store, tmp_path / "draft", b"one")
    publish_draft(store, tmp_path / "draft", b"two")
    assert list_versions(store, "part") == [1, 2]
    bundle = open_bundle(f"{store}/part/2", cache=tmp_path / "cache")
    assert bundle.path("model.onnx").read_bytes() == b"two"


def test_a_bucket_that_does_not_answer_opens_as_it_was_read_before(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, cache = s3_server.make_bucket("down") + "/models", tmp_path / "cache"
    known = publish_draft(store, tmp_path / "draft", b"one").uri
    other = publish_draft(store, tmp_path / "draft", b"two").uri
    open_bundle(known, cache).path("model.onnx")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    assert open_bundle(known, cache).path("model.onnx").read_bytes() == b"one"
    with pytest.raises(StorageError):
        open_bundle(known, cache).path("card.md")  # which was not fetched in time
    with pytest.raises(StorageError):
        open_bundle(other, cache)


def test_a_bucket_that_hangs_is_not_waited_for_where_it_was_read_before(
    s3_server: S3Server, silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that took connections and said nothing held up every start for a minute."""
    monkeypatch.setattr(models.bundle, "KNOWN_SECONDS", 0.5)
    store, cache = s3_server.make_bucket("hangs") + "/models", tmp_path / "cache"
    known = publish_draft(store, tmp_path / "draft", b"one").uri
    open_bundle(known, cache).path("model.onnx")
    monkeypatch.setenv("AWS_ENDPOINT_URL", silent)
    began = time.monotonic()
    assert open_bundle(known, cache).path("model.onnx").read_bytes() == b"one"
    assert time.monotonic() - began < 30


def test_versions_count_up_and_the_newest_is_found(tmp_path: Path) -> None:
    for number in range(1, 12):
        assert publish_draft(tmp_path / "m", tmp_path / "d").manifest.version == number
    assert newest_version(tmp_path / "m", "part") == 11
    with pytest.raises(NotFoundError, match="'other'"):
        newest_version(tmp_path / "m", "other")


def test_the_model_that_was_published_last_is_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        newest_model(tmp_path / "m")
    for day, name in enumerate(("b", "a", "c", "a"), start=1):
        manifest = draft(tmp_path / "d", name=name)
        created = datetime(2026, 1, 5 if name == "a" else day, tzinfo=UTC)
        publish(tmp_path / "m", manifest.model_copy(update={"created": created}), tmp_path / "d")
    (tmp_path / "m" / "unpublished" / "1").mkdir(parents=True)
    assert newest_model(tmp_path / "m") == "a"


def test_half_an_upload_is_invisible_and_its_number_is_not_used_again(tmp_path: Path) -> None:
    store = open_store(tmp_path / "m")
    publish_draft(tmp_path / "m", tmp_path / "d")
    store.write("part/2/model.onnx", b"the publisher died here")
    assert list_versions(tmp_path / "m", "part") == [1]
    with pytest.raises(NotFoundError, match=r"version '2'.*there are 1"):
        open_bundle(tmp_path / "m" / "part" / "2")
    assert publish_draft(tmp_path / "m", tmp_path / "d").manifest.version == 3
    assert store.read("part/2/model.onnx") == b"the publisher died here"


def test_concurrent_publishers_get_versions_of_their_own(tmp_path: Path) -> None:
    contents = [f"graph {i}".encode() for i in range(8)]

    def run(i: int) -> Published:
        return publish_draft(tmp_path / "m", tmp_path / f"d{i}", contents[i])

    with ThreadPoolExecutor(8) as pool:
        published = list(pool.map(run, range(8)))
    assert sorted(p.manifest.version for p in published) == list(range(1, 9))
    for content, p in zip(contents, published, strict=True):
        bundle = open_bundle(p.uri, cache=tmp_path / "cache")
        assert bundle.path("model.onnx").read_bytes() == content


def _publish_slowly(store: str, folder: str) -> None:
    manifest = draft(Path(folder), b"x" * (1 << 20))
    while True:
        publish(store, manifest, Path(folder))


@pytest.mark.slow
def test_a_publisher_killed_at_any_point_leaves_only_whole_bundles(tmp_path: Path) -> None:
    store = tmp_path / "m"
    # Not fork: the storage library's threads do not survive one.
    context = multiprocessing.get_context("spawn")
    for round_ in range(3):
        before = len(list_versions(store, "part"))
        process = context.Process(target=_publish_slowly, args=(str(store), str(tmp_path / "d")))
        process.start()
        while len(list_versions(store, "part")) <= before:
            assert process.is_alive()
            time.sleep(0.01)
        time.sleep(0.003 * round_)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    for version in list_versions(store, "part"):
        open_bundle(store / "part" / str(version), cache=tmp_path / "c").path("model.onnx")


@pytest.mark.parametrize("change", ["flip", "cut", "grow"])
def test_one_changed_byte_is_refused(tmp_path: Path, change: str) -> None:
    published = publish_draft(tmp_path / "m", tmp_path / "d", b"a graph of some length")
    path = Path(published.uri) / "model.onnx"
    data = bytearray(path.read_bytes())
    if change == "flip":
        data[5] ^= 1
    path.write_bytes({"flip": data, "cut": data[:-1], "grow": data + b"!"}[change])
    with pytest.raises(DigestError, match=r"model\.onnx"):
        open_bundle(published.uri, cache=tmp_path / "cache").path("model.onnx")
    assert not list((tmp_path / "cache").rglob("model.onnx"))


def test_a_damaged_cache_mends_itself(tmp_path: Path) -> None:
    published = publish_draft(tmp_path / "m", tmp_path / "d")
    bundle = open_bundle(published.uri, cache=tmp_path / "cache")
    bundle.path("model.onnx").write_bytes(b"grap?")
    assert bundle.path("model.onnx").read_bytes() == b"graph"


def _open_and_read(arguments: tuple[str, str]) -> bytes:
    uri, cache = arguments
    return open_bundle(uri, cache=Path(cache)).path("model.onnx").read_bytes()


@pytest.mark.slow
def test_many_processes_share_one_cache(tmp_path: Path) -> None:
    published = publish_draft(tmp_path / "m", tmp_path / "d", b"y" * (4 << 20))
    work = [(published.uri, str(tmp_path / "cache"))] * 16
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert set(pool.map(_open_and_read, work)) == {b"y" * (4 << 20)}
    assert not list((tmp_path / "cache").rglob(".part-*"))


def test_a_draft_that_does_not_match_its_manifest_is_not_published(tmp_path: Path) -> None:
    manifest = draft(tmp_path / "d")
    (tmp_path / "d" / "model.onnx").write_bytes(b"other")
    with pytest.raises(DigestError):
        publish(tmp_path / "m", manifest, tmp_path / "d")
    (tmp_path / "d" / "model.onnx").unlink()
    with pytest.raises(BundleError, match="missing"):
        publish(tmp_path / "m", manifest, tmp_path / "d")
    assert list_versions(tmp_path / "m", "part") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format version 2"),
        ({"kind": "cubist"}, "cubist"),
        ({"surprise": 1}, "surprise"),
        ({"classes": CLASSES[:1]}, "1 classes listed"),
        ({"classes": [CLASSES[0], {"id": "b", "name": "GOOD"}]}, "same after Unicode folding"),
        ({"version": 0}, "version"),
        ({"name": "../etc"}, "name"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = Path(publish_draft(tmp_path / "m", tmp_path / "d").uri) / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ManifestError, match=message):
        open_bundle(path.parent)


def test_an_unreadable_manifest_is_named(tmp_path: Path) -> None:
    path = Path(publish_draft(tmp_path / "m", tmp_path / "d").uri) / MANIFEST
    path.write_text('{"format_version": 1,')
    with pytest.raises(ManifestError, match=r"manifest\.json: not valid JSON"):
        open_bundle(path.parent)


def test_the_folder_of_a_model_names_its_newest_version(tmp_path: Path) -> None:
    for _ in range(2):
        tiny_bundle(tmp_path)
    with pytest.raises(
        NotFoundError, match=rf"versions of a model; give one, as {tmp_path}/tiny/2"
    ):
        open_bundle(f"{tmp_path}/tiny")
