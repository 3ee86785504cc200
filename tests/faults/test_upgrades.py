"""New versions under load: good ones, and bad ones that must not get far."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import psutil
import pytest

from tests.faults.conftest import Figures
from tests.faults.load import load
from tests.faults.report import row
from tests.faults.site import Site, wait_until
from tests.serve_app.grpc_client import GrpcClient, image_request

SECONDS_TO_LEAVE = 60.0  # with all that an update takes on a busy machine

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(240)]


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_new_version_replaces_the_old_without_losing_a_request(
    site: Site, store: Path, photo: bytes, figures: Figures, replicas: int
) -> None:
    site.serve({"bundle": f"{store}/tiny/1"}, replicas=replicas)
    old = frozenset(replica["pid"] for replica in site.replicas())
    with load(f"{site.url}/classify", photo) as seen:
        time.sleep(2)
        began = time.monotonic()
        site.deploy({"bundle": f"{store}/tiny/2", "replicas": replicas})
        whole = site.wait_until_whole(replicas, without=old)
        time.sleep(5)  # the old ones answer what they have
        settled = time.monotonic()
        time.sleep(2)
    figures.append(row(f"new version, {replicas} replica(s)", seen, recovered=whole - began))
    assert figures[-1].failed == 0
    assert {outcome.version for outcome in seen.outcomes} == {1, 2}
    assert {outcome.version for outcome in seen.since(settled)} == {2}
    assert not [each for each in seen.outcomes if each.answered < began and each.version != 1]


def test_an_old_version_does_not_wait_for_a_stream_on_which_nothing_comes(
    site: Site, store: Path, photo: bytes
) -> None:
    """It did until it was killed, after 155 s."""
    site.serve({"bundle": f"{store}/tiny/1"}, replicas=1)
    (old,) = (replica["pid"] for replica in site.replicas())
    client, requests = GrpcClient(f"127.0.0.1:{site.grpc_port}"), SimpleQueue[Any]()
    try:
        answers = client.stream_on(iter(requests.get, None), seconds=120)
        requests.put(image_request(photo))
        assert next(answers).infer_response.model_version == "1"
        began = time.monotonic()
        site.deploy({"bundle": f"{store}/tiny/2", "replicas": 1})
        # Serve's own proxy, which answers until HAProxy knows the replica, loses what is told then.
        with pytest.raises((grpc.RpcError, StopIteration)) as ended:
            next(answers)
        if isinstance(ended.value, grpc.RpcError):
            assert "this replica leaves; open another stream" in str(ended.value)
        gone = wait_until(
            lambda: not psutil.pid_exists(old), lambda: f"still there: {site.all_replicas()}"
        )
        assert gone - began < SECONDS_TO_LEAVE
        (answer,) = client.stream([image_request(photo)])
        assert answer.infer_response.model_version == "2"
    finally:
        requests.put(None)
        client.close()


@pytest.mark.parametrize(("fault", "replicas"), [("proof", 1), ("bytes", 2)])
def test_a_bad_version_leaves_the_old_one_serving_and_is_rolled_back(
    site: Site,
    store: Path,
    tmp_path: Path,
    photo: bytes,
    figures: Figures,
    fault: str,
    replicas: int,
) -> None:
    good, bad = f"{store}/tiny/1", bad_version(store / "tiny" / "1", tmp_path, fault)
    site.serve({"bundle": good}, replicas=replicas)
    old = {replica["pid"] for replica in site.replicas()}
    with load(f"{site.url}/classify", photo, per_second=40) as seen:
        time.sleep(1)
        began = time.monotonic()
        site.deploy({"bundle": bad, "replicas": replicas})
        stopped = wait_until(
            lambda: site.status()[0] == "DEPLOY_FAILED", lambda: f"not given up: {site.status()}"
        )
        _, reason = site.status()
        assert {replica["pid"] for replica in site.replicas()} == old
        site.deploy({"bundle": good, "replicas": replicas})
        back = site.wait_until_whole(replicas)
        time.sleep(2)
    note = f"given up after {stopped - began:.1f} s"
    scenario = f"bad version ({fault}), {replicas} replica(s)"
    figures.append(row(scenario, seen, recovered=back - stopped, note=note))
    assert figures[-1].failed == 0
    assert {outcome.version for outcome in seen.outcomes} == {1}
    assert {"proof": "does not reproduce", "bytes": "SHA-256"}[fault] in reason, reason


def bad_version(good: Path, folder: Path, fault: str) -> str:
    """Make a bundle whose reference is of another network, or whose bytes are not those of its
    manifest.
    """
    target = folder / "tiny" / "9"
    shutil.copytree(good, target)
    manifest = json.loads((target / "manifest.json").read_text())
    manifest["version"] = 9
    (reference,) = (each for each in manifest["artifacts"] if each["path"] == "reference.npz")
    arrays = dict(np.load(target / "reference.npz"))
    # Not the same for both, or the digest of one would be found in the cache of the other.
    arrays["probabilities"] = np.roll(arrays["probabilities"], {"proof": 1, "bytes": 2}[fault], 0)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    data = buffer.getvalue()
    if fault == "proof":
        (target / "reference.npz").write_bytes(data)
    reference |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if fault == "bytes":
        (target / "reference.npz").write_bytes(data[:-1] + b"?")
    (target / "manifest.json").write_text(json.dumps(manifest))
    return str(target)
