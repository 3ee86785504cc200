"""Many models in one Serve: versions side by side, the catalog's calls, and replicas that come when
they are needed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serve_app.keys import ADMIN, INFER, new_key
from tests.bundles import tiny_bundle
from tests.serve_app.conftest import Server, encode, refused, run_application

pytestmark = [pytest.mark.e2e, pytest.mark.ray]

OFFICE, OFFICE_ROW = new_key("office", [ADMIN])
LINE, LINE_ROW = new_key("line-4", [INFER])
APP = "serve_app.app:build"


def application(name: str, prefix: str) -> dict[str, str]:
    """Return an entry of a serve file."""
    return {"import_path": APP, "name": name, "route_prefix": prefix}


@pytest.fixture(scope="module")
def second(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Version 2 of the server's model, beside version 1, with other classes."""
    from ray import serve

    folder = tmp_path_factory.mktemp("second")
    tiny_bundle(folder, name="elpv")
    uri = tiny_bundle(folder, name="elpv", classes=("fine", "broken"))
    prefix = "/v2/models/elpv/versions/2"
    args = {"bundle": uri, "replicas": 1, "num_cpus": 0.1}
    run_application(server, application("elpv-2", prefix), args)
    yield f"{server.url}{prefix}"
    serve.delete("elpv-2")


def test_two_versions_answer_side_by_side(server: Server, second: str) -> None:
    first = f"{server.url}/v2/models/elpv"
    image = encode(5)
    for url, version, labels in (
        (first, 1, {"good", "defective"}),
        (f"{first}/versions/1", 1, {"good", "defective"}),
        (second, 2, {"fine", "broken"}),
    ):
        answer = httpx.post(f"{url}/classify", content=image, timeout=20).json()
        assert answer["version"] == version
        assert {each["label"] for each in answer["scores"]} == labels
    for url in (first, second):
        metadata = httpx.get(url, timeout=20).json()
        assert (metadata["name"], metadata["versions"]) == ("elpv", ["1", "2"])
    refused(httpx.get(f"{first}/versions/3/ready"), 404, "unknown_version")
    index = httpx.post(f"{server.url}/v2/repository/index", json={"ready": True}).json()
    assert {(each["name"], each["version"]) for each in index} >= {("elpv", "1"), ("elpv", "2")}
    every = httpx.get(f"{server.url}/v2/models/stats", timeout=20).json()["model_stats"]
    assert {(each["name"], each["version"]) for each in every} >= {("elpv", "1"), ("elpv", "2")}


def test_a_route_that_is_not_the_models_path_fails_the_deployment(
    server: Server, tmp_path: Path
) -> None:
    from ray import serve

    uri = tiny_bundle(tmp_path, name="caps")
    args = {"bundle": uri, "replicas": 1, "num_cpus": 0.1}
    with pytest.raises(RuntimeError):
        run_application(server, application("wrong", "/v2/models/cap"), args)
    message = str(serve.status().applications["wrong"].deployments["model"].message)
    serve.delete("wrong")
    assert "has the route_prefix '/v2/models/cap' but holds the model caps/1" in message


@pytest.mark.parametrize("path", ["/v2/repository/index", "/v2/models/elpv/labels"])
@pytest.mark.parametrize("is_told", [True, False])
def test_no_body_is_read_ahead_that_no_call_takes(server: Server, path: str, is_told: bool) -> None:
    """Serve reads it to its end, into memory, while a call waits."""
    method, size = ("POST" if "index" in path else "GET"), 300_000
    length = {"Content-Length": str(size)} if is_told else {}
    parts = (bytes(1000) for _ in range(size // 1000))
    answer = httpx.request(method, server.url + path, content=parts, headers=length, timeout=20)
    if is_told and method == "GET":  # not read, and not asked for
        assert answer.status_code == 200
    elif answer.status_code != 200:  # a call that does not wait is answered before it comes
        refused(answer, 413, "body_too_large")
    assert answer.status_code == 413 or method == "GET"


def test_loading_and_unloading_are_answered_for_a_server_that_is_deployed(server: Server) -> None:
    url = f"{server.url}/v2/repository/models/elpv"
    # The local serve file has no keys, so nobody may.
    refused(httpx.post(f"{url}/load", json={}), 403, "admin_closed")
    refused(httpx.post(f"{url}/unload", json={}), 403, "admin_closed")
    for path in ("systemsharedmemory/status", "trace/setting", "logging"):
        refused(httpx.get(f"{server.url}/v2/{path}"), 501, "not_offered")


def test_a_catalog_with_keys_lets_in_who_has_one(server: Server, tmp_path: Path) -> None:
    from ray import serve

    (tmp_path / "keys").write_text(f"{OFFICE_ROW}\n{LINE_ROW}\n")
    args = {"keys_file": str(tmp_path / "keys")}
    entry = {"import_path": "serve_app.catalog:build", "name": "keyed", "route_prefix": "/keyed"}
    run_application(server, entry, args, path="/v2/health/live")
    url = f"{server.url}/keyed"
    as_office, as_line = ({"X-API-Key": key} for key in (OFFICE, LINE))
    try:
        assert httpx.get(f"{url}/v2/health/ready").status_code in (200, 503)
        refused(httpx.post(f"{url}/v2/repository/index"), 401, "unauthenticated")
        index = httpx.post(f"{url}/v2/repository/index", headers=as_line)
        assert "elpv" in [each["name"] for each in index.json()]
        models = f"{url}/v2/repository/models"
        refused(httpx.post(f"{models}/elpv/load", headers=as_line), 403, "forbidden")
        loaded = httpx.post(f"{models}/elpv/load", headers=as_office)
        assert (loaded.status_code, loaded.content) == (200, b"")
        other = {"parameters": {"config": "{}"}}
        refused(
            httpx.post(f"{models}/elpv/load", headers=as_office, json=other), 501, "declarative"
        )
        refused(httpx.post(f"{models}/elvp/load", headers=as_office), 404, "unknown_model")
        refused(httpx.post(f"{models}/elpv/unload", headers=as_office), 501, "declarative")
    finally:
        serve.delete("keyed")


@pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field:DeprecationWarning")
def test_a_model_may_have_no_replica_until_it_is_asked(server: Server, tmp_path: Path) -> None:
    from ray import serve

    uri = tiny_bundle(tmp_path, name="rare")
    autoscaling = {
        "min_replicas": 0,
        "max_replicas": 2,
        "upscale_delay_s": 0,
        "downscale_delay_s": 1,
        "downscale_to_zero_delay_s": 1,
        "metrics_interval_s": 0.5,
        "look_back_period_s": 1,
    }
    run_application(
        server,
        application("rare", "/v2/models/rare"),
        {"bundle": uri, "autoscaling": autoscaling, "num_cpus": 0.1},
    )

    def replicas() -> int:
        states = serve.status().applications["rare"].deployments["model"].replica_states
        return sum(states.values())

    try:
        deadline = time.monotonic() + 60
        while replicas():
            assert time.monotonic() < deadline, "it does not go down to none"
            time.sleep(0.5)
        url = f"{server.url}/v2/models/rare/classify"
        answer = httpx.post(url, content=encode(), timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == "rare"
    finally:
        serve.delete("rare")
