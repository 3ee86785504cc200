"""Metrics, request ids and the access log of two replicas, through real Ray Serve and its agent."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

from cluster.environment import free_port
from cluster.render import ALERTS
from cluster.session import Session
from serve_app.metrics import ALL
from serve_app.trace import KEY
from tests.bundles import tiny_bundle
from tests.cluster.test_dashboard import expressions, filled
from tests.series import FOREIGN, OF_AGENT, OURS
from tests.serve_app.conftest import Server, encode, run_application
from tests.serve_app.grpc_client import GrpcClient, image_request
from tests.serve_app.grpc_ready import wait_until_routed

pytestmark = [pytest.mark.e2e, pytest.mark.ray]

NAME = "seen"
ROOT = Path(__file__).parents[2]
MAY_BE_EMPTY = {"Label store failures"}  # titles of panels
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
    run_application(server, application, args)
    wait_until_routed(server.grpc_address, [NAME])
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
    return [sample for sample in scrape_all() if sample.tags.get("model") == NAME]


def agent() -> str:
    """Return where Ray's agent shows metrics, as Prometheus writes a target."""
    import ray

    (node,) = ray.nodes()
    return f"127.0.0.1:{node['MetricsExportPort']}"


def scrape_all() -> list[Sample]:
    """Read what Ray's agent shows of everything."""
    text = httpx.get(f"http://{agent()}/metrics", timeout=SECONDS_TO_APPEAR).text

    def tags_in(listed: str) -> dict[str, str]:
        # To Prometheus a label without a value is none.
        return {name: value for name, value in TAG.findall(listed) if value}

    matches = [SAMPLE.match(line) for line in text.splitlines()]
    return [
        Sample(each["name"], tags_in(each["tags"]), float(each["value"]))
        for each in matches
        if each is not None
    ]


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


def test_serve_counts_requests_that_go_past_it(url: str) -> None:
    def counted() -> float:
        tags = {"application": NAME, "route": f"/v2/models/{NAME}"}
        return sum(
            sample.value
            for sample in scrape_all()
            if sample.name.startswith("ray_serve_deployment_request_counter")
            and tags.items() <= sample.tags.items()
        )

    before = counted()
    for _ in range(7):
        assert httpx.post(f"{url}/classify", content=encode(), timeout=20).status_code == 200
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    while counted() < before + 7 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert counted() >= before + 7


def test_the_catalog_counts_who_asks_it(url: str, server: Server) -> None:
    wanted = {
        ("requests", "ready", "http", None): 3,
        ("requests", "live", "grpc", None): 1,
        ("requests", "page", "http", None): 1,
        ("errors", "unknown", "http", "unknown_model"): 2,
        ("errors", "index", "http", "method_not_allowed"): 1,
    }

    def counted() -> dict[tuple[str, str, str, str | None], float]:
        samples = [each for each in scrape_all() if each.tags.get("application") == "catalog"]
        return {
            (what, call, protocol, code): total(
                samples,
                f"{what}_total",
                call=call,
                protocol=protocol,
                **({"code": code} if code else {}),
            )
            for what, call, protocol, code in wanted
        }

    before = counted()
    for path in (*["v2/health/ready"] * 3, "", *["v2/models/nothing"] * 2, "v2/repository/index"):
        httpx.get(f"{server.url}/{path}")
    client = GrpcClient(server.grpc_address, {"application": "catalog"})
    client.call("ServerLive")
    client.close()
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    while True:
        added = {key: count - before[key] for key, count in counted().items()}
        if added == wanted:
            break
        assert time.monotonic() < deadline, f"{added}, expected {wanted}"
        time.sleep(1)


def test_ray_shows_our_series_under_the_names_and_labels_that_others_count_on(url: str) -> None:
    assert httpx.post(f"{url}/classify", content=encode()).status_code == 200
    mixed = [("file", encode()), ("file", b"no image")]
    assert httpx.post(f"{url}/classify", files=mixed).status_code == 200
    rare = {"ray_sightline_label_refresh_failures_total", "ray_sightline_unknown_total"}
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    while True:
        samples = scrape_all()
        missing = {*OURS, *FOREIGN} - {sample.name for sample in samples} - rare
        if not missing:
            break
        assert time.monotonic() < deadline, f"not shown: {missing}"
        time.sleep(1)
    for sample in samples:
        if sample.name.startswith("ray_sightline_"):
            # What other tests of the session served is still shown, their catalogs by other names.
            if sample.tags["application"] not in (NAME, "catalog"):
                continue
            of_model = set(ALL) if sample.tags["application"] != "catalog" else set()
            assert set(sample.tags) - OF_AGENT == OURS[sample.name] - set(ALL) | of_model, sample
        elif sample.name in FOREIGN:
            assert set(sample.tags) >= FOREIGN[sample.name], sample
    healthy = [
        sample.value
        for sample in samples
        if sample.name == "ray_serve_deployment_replica_healthy"
        and {"application": NAME, "deployment": "model"}.items() <= sample.tags.items()
    ]
    assert sum(healthy) == 2


@pytest.fixture
def prometheus(url: str, tmp_path: Path) -> Iterator[str]:
    """A real Prometheus that scrapes Ray's agent and evaluates our alerts, every five seconds: the
    page of an agent that has seen many models takes longer than one to be read.
    """
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not on PATH; on Debian and Ubuntu: apt-get install prometheus")
    config = {
        "global": {"scrape_interval": "5s", "evaluation_interval": "5s"},
        "rule_files": [str(ROOT / ALERTS)],
        "scrape_configs": [{"job_name": "ray", "static_configs": [{"targets": [agent()]}]}],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [program, f"--config.file={tmp_path / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address={address}"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    yield f"http://{address}/api/v1"
    process.terminate()
    process.wait(timeout=30)


def test_prometheus_finds_something_for_every_panel_of_the_dashboard(
    url: str, prometheus: str
) -> None:
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    asked = {expression: title for title, expression in expressions()}
    while empty := {
        expression: title
        for expression, title in asked.items()
        if title not in MAY_BE_EMPTY and not has_data(prometheus, expression)
    }:
        assert time.monotonic() < deadline, f"no data: {empty}"
        for number in range(10):
            httpx.post(f"{url}/classify", content=encode(number))
        httpx.post(f"{url}/classify", content=b"no image")
        time.sleep(1)
    (group,) = httpx.get(f"{prometheus}/rules").json()["data"]["groups"]
    assert {rule["health"] for rule in group["rules"]} == {"ok"}, group


def has_data(prometheus: str, expression: str) -> bool:
    """Say whether a query has at least one number for an answer; without a Prometheus, no."""
    try:
        answer = httpx.get(f"{prometheus}/query", params={"query": filled(expression)})
    except httpx.TransportError:  # it is still starting
        return False
    if answer.status_code == 503:  # so it is here
        return False
    assert answer.status_code == 200, answer.text
    found = answer.json()["data"]["result"]
    return any(math.isfinite(float(each["value"][1])) for each in found)


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
