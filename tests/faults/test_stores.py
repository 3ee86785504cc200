"""Stores that do not answer, and a disk that is full."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from models.bundle import open_bundle
from models.label_edits import Rename
from models.label_log import open_log
from models.label_revision import Author
from tests.bundles import tiny_bundle
from tests.conftest import S3Server
from tests.disks import fill, small_disk
from tests.faults.conftest import Figures
from tests.faults.load import load
from tests.faults.report import row
from tests.faults.site import Site, kill, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(240)]

OUTAGE_SECONDS = 40


def test_a_label_store_that_hangs_leaves_the_labels_as_they_are(
    site: Site, s3_server: S3Server, tmp_path: Path, photo: bytes, figures: Figures
) -> None:
    bundle = tiny_bundle(tmp_path, kind="dynamic")
    labels = f"{s3_server.make_bucket('fault-labels')}/labels"
    log = open_log(labels, "tiny", open_bundle(bundle).manifest.classes)
    log.write([Rename(label="good", name="fine")], Author("ann", "a fault"))
    site.serve({"bundle": bundle, "label_store": labels}, replicas=2)
    assert s3_server.process is not None
    with load(f"{site.url}/classify", photo) as seen:
        time.sleep(1)
        s3_server.process.send_signal(signal.SIGSTOP)
        try:
            time.sleep(OUTAGE_SECONDS)
        finally:
            s3_server.process.send_signal(signal.SIGCONT)
        ended = time.monotonic()
        written = log.write([Rename(label="good", name="sound")], Author("ann", "a fault")).number
        taken_up = wait_until(
            lambda: {each.revision for each in seen.outcomes[-20:]} == {written},
            lambda: f"still at {seen.outcomes[-1].revision}, expected {written}",
        )
    note = f"the store hung for {OUTAGE_SECONDS} s"
    figures.append(row("label store unreachable", seen, recovered=taken_up - ended, note=note))
    assert figures[-1].failed == 0
    assert {outcome.revision for outcome in seen.outcomes} == {written - 1, written}


def test_a_replica_waits_for_a_bundle_store_that_is_down_and_starts_from_its_cache_later(
    site: Site, s3_server: S3Server, tmp_path: Path, photo: bytes, figures: Figures
) -> None:
    models = s3_server.make_bucket("fault-models")
    # Of another digest than what is cached already.
    bundle = tiny_bundle(models, classes=("a", "b", "c"))
    before = frozenset(replica["pid"] for replica in site.replicas())
    s3_server.stop()
    try:
        site.deploy({"bundle": bundle, "replicas": 1})
        time.sleep(8)
        assert {replica["pid"] for replica in site.replicas()} <= before
        # It is being tried: a replica is there, and is not ready.
        assert site.status()[0] == "DEPLOYING"
        assert {replica["state"] for replica in site.all_replicas()} - {"RUNNING", "STOPPING"}
    finally:
        s3_server.start()
    back = time.monotonic()
    assert s3_server.make_bucket("fault-models") == models
    assert tiny_bundle(models, classes=("a", "b", "c")) == bundle
    whole = site.wait_until_whole(1, without=before)
    wait_until(site.is_ready, lambda: f"nothing answers at {site.url}")
    with load(f"{site.url}/classify", photo, per_second=20) as first:
        time.sleep(1)
    figures.append(row("bundle store down at start", first, recovered=whole - back))
    assert figures[-1].failed == 0
    s3_server.stop()
    try:
        pid = site.replicas()[0]["pid"]
        with load(f"{site.url}/classify", photo, per_second=20) as seen:
            killed = kill(pid)
            whole = site.wait_until_whole(1, without=frozenset([pid]))
            time.sleep(2)
    finally:
        s3_server.start()
    note = "the new one starts from the cache"
    figures.append(
        row("replica killed, bundle store down", seen, recovered=whole - killed, note=note)
    )
    assert figures[-1].failed == 0


def test_a_full_disk_keeps_the_old_version_serving_and_says_so(
    site: Site, store: Path, tmp_path: Path, photo: bytes, figures: Figures
) -> None:
    cache = Path(os.environ["SIGHTLINE_CACHE"])
    new = tiny_bundle(tmp_path / "models", classes=("one", "other"), size=32)
    site.serve({"bundle": f"{store}/tiny/1"}, replicas=1)
    old = frozenset(replica["pid"] for replica in site.replicas())
    with small_disk(cache), load(f"{site.url}/classify", photo, per_second=40) as seen:
        filler = cache / "filler"
        fill(filler)
        site.deploy({"bundle": new, "replicas": 1, "start_patience_seconds": 1})
        wait_until(
            lambda: site.status()[0] == "DEPLOY_FAILED", lambda: f"not given up: {site.status()}"
        )
        assert "the disk is full" in site.status()[1], site.status()
        assert {replica["pid"] for replica in site.replicas()} == old
        filler.unlink()
        freed = time.monotonic()
        site.deploy({"bundle": new, "replicas": 1})
        whole = site.wait_until_whole(1, without=old)
        time.sleep(3)
    figures.append(row("disk full in the cache", seen, recovered=whole - freed))
    assert figures[-1].failed == 0
