"""What a replica counts, and how the counters of several are added up."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from serve_app.asgi import build_asgi
from serve_app.config import ServeOptions
from serve_app.model import open_served
from serve_app.statistics import PARTS, Statistics, model_statistics
from tests.serve_app.conftest import ROOT, encode, refused


def test_requests_and_images_are_counted_by_what_became_of_them(options: ServeOptions) -> None:
    model = open_served(options)
    with TestClient(build_asgi(model), base_url=f"http://test{ROOT}", root_path=ROOT) as client:
        empty = client.get("/stats").json()["model_stats"][0]
        assert set(empty["inference_stats"]) == set(PARTS)
        assert empty["last_inference"] == empty["inference_count"] == 0
        assert empty["batch_stats"] == []
        client.post("/classify", content=encode())
        client.post("/classify", files=[("f", encode(1)), ("f", encode(2)), ("f", b"no image")])
        client.post("/classify", content=b"no image")
        client.post("/infer", content=encode(), headers={"Inference-Header-Content-Length": "0"})
        answer = client.get("/versions/1/stats").json()
    model.close()
    assert answer["replicas"] == 1
    counted = answer["model_stats"][0]
    assert (counted["name"], counted["version"]) == ("tiny", "1")
    assert (counted["inference_count"], counted["execution_count"]) == (4, 4)
    parts = counted["inference_stats"]
    counts = {part: value["count"] for part, value in parts.items()}
    assert counts == {
        "success": 3,
        "fail": 1,
        "queue": 4,
        "compute_input": 4,
        "compute_infer": 4,
        "compute_output": 3,
        "cache_hit": 0,
        "cache_miss": 0,
    }
    assert parts["success"]["ns"] > parts["compute_infer"]["ns"] / 4 > 0
    assert counted["last_inference"] > 1_700_000_000_000  # milliseconds
    (single,) = counted["batch_stats"]
    assert (single["batch_size"], single["compute_infer"]["count"]) == (1, 4)


def test_replicas_are_added_up() -> None:
    one, other = Statistics(), Statistics()
    one.add_run(1, 10, 20, 30)
    one.add_run(4, 1, 2, 3)
    other.add_run(4, 100, 200, 300)
    with one.request():
        pass
    with pytest.raises(ValueError, match="x"), other.request():
        raise ValueError("x")
    total = model_statistics("m", "1", [one.counters(), other.counters()])
    assert (total["inference_count"], total["execution_count"]) == (9, 3)
    assert total["inference_stats"]["queue"] == {"count": 9, "ns": 111}
    assert total["inference_stats"]["success"]["count"] == 1
    assert total["inference_stats"]["fail"]["count"] == 1
    assert [each["batch_size"] for each in total["batch_stats"]] == [1, 4]
    assert total["batch_stats"][1]["compute_infer"] == {"count": 2, "ns": 303}
    assert model_statistics("m", "1", [])["inference_stats"]["queue"] == {"count": 0, "ns": 0}


def test_more_requests_than_a_replica_takes_are_refused_unread(options: ServeOptions) -> None:
    model = open_served(options.model_copy(update={"max_requests": 1}))
    with TestClient(build_asgi(model), base_url=f"http://test{ROOT}", root_path=ROOT) as client:
        with model.gate.admitted():
            answer = client.post("/classify", content=encode())
            assert "1 requests to answer" in refused(answer, 429, "queue_full")
            assert answer.headers["retry-after"] == "1"
            refused(client.post("/infer", content=b"{}"), 429, "queue_full")
            assert client.get("/ready").status_code == 200
            assert client.get("/config").status_code == 200
        assert client.post("/classify", content=encode()).status_code == 200
        assert model.gate.num_inside == 0
    model.close()


def test_every_image_of_a_batch_counts_in_the_times_of_its_stages() -> None:
    statistics = Statistics()
    ms = 1_000_000
    statistics.add_run(4, 4 * 3 * ms, 4 * 1 * ms, 4 * 8 * ms)  # summed over the images
    for stage, seconds, bound in (("queue", 0.003, 0.005), ("infer", 0.008, 0.01)):
        found = statistics.stages()[stage]
        at_most = dict(zip(found.bounds, found.counts, strict=False))
        assert found.counts[-1] == at_most[bound] == 4
        assert at_most[0.002] == 0
        assert found.total == pytest.approx(4 * seconds)
