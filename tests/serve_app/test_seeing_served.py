"""Metrics, request ids and the access log of two replicas, through real Ray Serve and its agent."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from cluster.session import Session
from serve_app.trace import KEY
from tests.bundles import tiny_bundle
from tests.serve_app.conftest import Server, encode, run_application
from tests.serve_app.grpc_client import GrpcClient, image_request
from tests.serve_app.grpc_ready import wait_until_routed

pytestmark = [pytest.mark.e2e, pytest.mark.ray]

NAME = "seen"
SECONDS_TO_APPEAR = 60
SAMPLE = re.compile(r"^(?P<name>\w+)\{(?P<tags>.*)\} (?P<value>\S+)$")
TAG = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@pytest.fixture(scope="module")
def url(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two replicas of a model, of which every request is logged."""
    from ray import serve

    path = f"/v2/models/{NAME}"
    application = {"import_path": "serve_app.app:build", "name": NAME, "route_prefix": path}
    bundle = tiny_bundle(tmp_path_factory.mktemp("models"), name=NAME)
    args = {"bundle": bundle, "replicas": 2, "num_cpus": 0.1, "access_log_sample": 1.0}
    run_application(application, args)
    wait_until_routed(server.grpc_address, [NAME])
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    while httpx.get(f"{server.url}{path}/ready").status_code != 200:
        assert time.monotonic() < deadline, "the model is not routed to"
        time.sleep(0.2)
    yield f"{server.url}{path}"
    serve.delete(NAME)


@dataclass(frozen=True)
class Sample:
    """One line of Prometheus' text format."""

    name: str
    tags: dict[str, str]
    value: float


def scrape() -> list[Sample]:
    """Read what Ray's agent shows of our model."""
    import ray

    (node,) = ray.nodes()
    text = httpx.get(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics").text
    matches = [SAMPLE.match(line) for line in text.splitlines()]
    samples = [
        Sample(each["name"], dict(TAG.findall(each["tags"])), float(each["value"]))
        for each in matches
        if each is not None
    ]
    return [sample for sample in samples if sample.tags.get("model") == NAME]


def total(samples: Sequence[Sample], name: str, **tags: str) -> float:
    """Return the sum of a metric over all series that have these tags."""
    return sum(
        sample.value
        for sample in samples
        if sample.name == f"ray_sightline_{name}" and tags.items() <= sample.tags.items()
    )


def test_prometheus_sees_what_two_replicas_were_asked(url: str, server: Server) -> None:
    before = scrape()
    answers = [httpx.post(f"{url}/classify", content=encode(number)) for number in range(30)]
    assert {answer.status_code for answer in answers} == {200}
    for _ in range(3):
        assert httpx.post(f"{url}/classify", content=b"no image").status_code == 415
    client = GrpcClient(server.grpc_address, {"application": NAME})
    for _ in range(2):
        client.call("ModelInfer", image_request(encode(1), encode(2), model=NAME))
    client.close()

    def counted(samples: Sequence[Sample]) -> dict[str, float]:
        return {
            "classify": total(samples, "requests_total", call="classify", protocol="http"),
            "grpc": total(samples, "requests_total", call="infer", protocol="grpc"),
            "refused": total(samples, "errors_total", call="classify", code="image_type"),
            "good": total(samples, "predictions_total", label="good"),
            "defective": total(samples, "predictions_total", label="defective"),
            "inferred": total(samples, "infer_seconds_bucket", le="+Inf"),
            "queued": total(samples, "queue_seconds_count"),
            "timed": total(samples, "request_seconds_count", call="classify"),
        }

    labels = [answer.json()["label"] for answer in answers]
    expected = {"classify": 33, "grpc": 2, "refused": 3, "timed": 33}
    expected |= {"inferred": 34, "queued": 34}
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    while True:
        samples = scrape()
        now, then = counted(samples), counted(before)
        added = {name: now[name] - then[name] for name in now}
        if expected.items() <= added.items():
            break
        assert time.monotonic() < deadline, f"{added}, expected {expected}"
        time.sleep(1)
    assert added["good"] + added["defective"] == 34
    assert added["good"] >= labels.count("good")
    assert added["defective"] >= labels.count("defective")

    engines = [sample for sample in samples if sample.name == "ray_sightline_engine_info"]
    replicas = {sample.tags["replica"] for sample in engines}
    assert len(replicas) == 2
    assert [sample.value for sample in engines] == [1, 1]
    for sample in engines:
        assert {"application": NAME, "deployment": "model", "version": "1"}.items() <= (
            sample.tags.items()
        )
    for replica in replicas:
        asked = total(samples, "requests_total", call="classify", replica=replica)
        assert 0 < asked < 33, "HAProxy gave one replica all of them"


def test_an_id_comes_back_once_and_a_new_one_where_none_was_sent(url: str, server: Server) -> None:
    for address in (f"{url}/ready", f"{url}/nothing", f"{server.url}/v2", f"{server.url}/nothing"):
        given = httpx.get(address, headers={KEY: "line-4:17"})
        assert given.headers.get_list(KEY) == ["line-4:17"], address
        made = [httpx.get(address).headers.get_list(KEY) for _ in range(2)]
        assert [len(each) for each in made] == [1, 1]
        assert uuid.UUID(made[0][0]) != uuid.UUID(made[1][0])
        # Serve sends back whatever came; ours stands before it.
        ours, theirs = httpx.get(address, headers={KEY: "two words"}).headers.get_list(KEY)
        assert uuid.UUID(ours)
        assert theirs == "two words"
    client = GrpcClient(server.grpc_address, {"application": NAME, "x-request-id": "line-4:18"})
    for image in (encode(), b"no image"):
        trailing = client.trailing("ModelInfer", image_request(image, model=NAME))
        assert trailing[KEY] == "line-4:18"
    client.close()


def test_requests_stand_in_the_access_log_beside_the_logs_of_serve(
    url: str, ray_session: Session
) -> None:
    ids = [f"logged-{number}" for number in range(10)]
    for each in ids:
        httpx.post(f"{url}/classify?top_k=1", content=encode(), headers={KEY: each})
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    folder = Path(ray_session.folder)
    while True:
        files = list(folder.glob(f"session_latest/logs/serve/access_{NAME}_*.log"))
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        found = [line for line in lines if line["request_id"] in ids]
        if len(found) == len(ids):
            break
        assert time.monotonic() < deadline, f"{len(found)} lines in {files}"
        time.sleep(0.3)
    assert len(files) == 2
    for line in found:
        assert (line["status"], line["path"]) == (200, f"/v2/models/{NAME}/classify")
        assert line["replica"] in {file.stem.removeprefix(f"access_{NAME}_") for file in files}
        assert 0 < line["infer_ms"] < line["total_ms"]
    others = [file for file in folder.glob("session_latest/logs/serve/replica_*")]
    assert others, "they do not lie beside the logs of Serve"
