"""What is counted of requests, images and labels, over HTTP and gRPC, without Ray."""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve_app.asgi import build_asgi
from serve_app.catalog import call_name
from serve_app.config import ServeOptions
from serve_app.keys import ADMIN, Keys, new_key
from serve_app.meters import MAX_LABELS, OTHER_LABELS, Meters, batch_sizes
from serve_app.metrics import (
    ALL,
    METRICS,
    Exporter,
    Figure,
    PlainSink,
    bundle_digest,
    figures_of,
    figures_of_requests,
)
from serve_app.model import ServedModel, open_served
from serve_app.oip.grpc_watch import CALL_NAMES
from serve_app.openapi.docs import catalog_docs
from serve_app.pages import page_routes
from serve_app.replies import json_reply
from serve_app.routing import Api
from serve_app.watch import Watch
from tests.bundles import tiny_bundle
from tests.series import OF_RAY
from tests.serve_app.conftest import encode
from tests.serve_app.grpc_client import GrpcClient, image_request
from tests.serve_app.grpc_server import serve

DOCS = Path(__file__).parents[2] / "docs" / "observability.md"
OFFICE, OFFICE_ROW = new_key("office", [ADMIN])
PREFIX = "sightline_"


@dataclass(frozen=True)
class Seen:
    """A model, a client of it, and its figures."""

    model: ServedModel
    client: TestClient

    def value(self, name: str, **tags: str) -> float:
        """Return a figure as it is now, summed over the tags that are not given."""
        sink = PlainSink()
        sink.write(figures_of(self.model))
        return sink.value(PREFIX + name, **tags)


def seeing(options: ServeOptions, keys: Keys | None = None) -> Iterator[Seen]:
    """Open a model of its own, so that nobody else is counted."""
    model = open_served(options)
    url = f"http://test/v2/models/{model.manifest.name}"
    app = build_asgi(model, keys)
    with TestClient(app, base_url=url, root_path=url.removeprefix("http://test")) as client:
        yield Seen(model, client)
    model.close()


@pytest.fixture
def seen(options: ServeOptions) -> Iterator[Seen]:
    """A model of kind generic that nobody has asked yet."""
    yield from seeing(options)


@pytest.fixture
def labelled(tmp_path: Path) -> Iterator[Seen]:
    """A model of kind dynamic that nobody has asked yet."""
    bundle = tiny_bundle(tmp_path, kind="dynamic", name="caps", classes=("good", "dented"))
    labels = {"label_store": str(tmp_path / "labels"), "label_poll_seconds": 3600}
    yield from seeing(ServeOptions(bundle=bundle, threads=1, **labels), Keys(OFFICE_ROW))


def test_requests_are_counted_by_call_and_wire_and_errors_by_code(seen: Seen) -> None:
    for path in ("", "/ready", "/versions/1/ready", "/config", "/stats", "/nothing/here"):
        seen.client.get(path)
    seen.client.get("/views/tensor/v2/models/tiny")
    seen.client.get("/views/tensor/v2/health/ready")
    seen.client.get("/views/tensor/v2/models/tiny/versions/1/ready")
    seen.client.get("/classify")
    seen.client.post("/classify", content=encode())
    seen.client.post("/classify", content=b"no image")
    seen.client.post("/versions/1/embed", content=encode())
    seen.client.post("/infer", content=encode(), headers={"Inference-Header-Content-Length": "0"})
    seen.client.post("/infer", content=b"{")

    counted = {"metadata": 2, "ready": 4, "config": 1, "stats": 1, "unknown": 1}
    counted |= {"classify": 3, "embed": 1, "infer": 2}
    for call, count in counted.items():
        assert seen.value("requests_total", call=call, protocol="http") == count, call
    assert seen.value("requests_total") == sum(counted.values())
    errors = {
        ("unknown", "not_found"): 1,
        ("classify", "method_not_allowed"): 1,
        ("classify", "image_type"): 1,
        ("infer", "bad_json"): 1,
    }
    for (call, code), count in errors.items():
        assert seen.value("errors_total", call=call, code=code) == count, code
    assert seen.value("errors_total") == sum(errors.values())


def test_calls_over_grpc_are_counted_under_the_names_of_http(options: ServeOptions) -> None:
    for seen in seeing(options):
        for address in serve(seen.model, Keys()):
            client = GrpcClient(address)
            client.call("ServerLive")
            client.call("ModelReady", name="tiny")
            client.call("ModelInfer", image_request(encode(1), encode(2)))
            client.refused("INVALID_ARGUMENT", "ModelInfer", image_request(b"no image"))
            client.refused("UNIMPLEMENTED", "TraceSetting")
            requests = [image_request(encode()), image_request(b"no image")]
            assert len(list(client.stream(requests))) == 2
            client.close()
        for call, count in {"live": 1, "ready": 1, "infer": 4, "not_offered": 1}.items():
            assert seen.value("requests_total", call=call, protocol="grpc") == count, call
        assert seen.value("requests_total", protocol="http") == 0
        assert seen.value("errors_total", call="infer", code="image_type") == 2
        assert seen.value("errors_total", code="not_offered") == 1
        assert seen.value("infer_seconds_count") == 3
        assert seen.value("request_seconds_count", call="infer", protocol="grpc") == 4
        assert seen.value("confidence_count") == 3


def test_a_request_beyond_those_that_fit_is_counted_by_its_code(options: ServeOptions) -> None:
    for seen in seeing(options.model_copy(update={"max_requests": 1})):
        with seen.model.gate.admitted():
            assert seen.value("requests_inside") == 1
            assert seen.client.post("/classify", content=encode()).status_code == 429
        assert seen.value("errors_total", call="classify", code="queue_full") == 1
        assert seen.value("requests_inside") == 0


def test_times_are_distributed_over_buckets_and_add_up(seen: Seen) -> None:
    started = time.perf_counter()
    for number in range(5):
        seen.client.post("/classify", content=encode(number))
    elapsed = time.perf_counter() - started
    for stage in ("queue", "decode", "infer"):
        assert 0 < seen.value(f"{stage}_seconds_sum") < elapsed, stage
    whole = seen.value("request_seconds_sum", call="classify")
    spent = sum(seen.value(f"{stage}_seconds_sum") for stage in ("decode", "infer"))
    assert spent < whole < elapsed

    # The images of one request may be at work at the same time, for longer than it takes.
    seen.client.post("/classify", files=[("f", encode(1)), ("f", encode(2)), ("f", b"no image")])
    for stage in ("queue", "decode", "infer"):
        assert seen.value(f"{stage}_seconds_count") == 7, stage
        assert seen.value(f"{stage}_seconds_bucket", le="+Inf") == 7, stage
    assert seen.value("request_seconds_count", call="classify") == 6
    assert seen.value("request_seconds_bucket", call="classify", le="10") == 6
    rising = [seen.value("infer_seconds_bucket", le=le) for le in ("0.0005", "0.01", "1", "10")]
    assert rising == sorted(rising)
    assert seen.value("batch_images_bucket", le="1") == 7
    assert seen.value("batch_images_sum") == 7
    assert seen.value("image_errors_total", code="image_type") == 1


def test_batches_are_distributed_by_their_size() -> None:
    found = batch_sizes({1: 3, 4: 2, 200: 1})
    assert found.count == 6
    assert found.total == 3 + 8 + 200
    assert dict(zip(found.bounds, found.counts, strict=False))[4] == 5


def test_a_value_on_a_bound_belongs_below_it() -> None:
    meters = Meters()
    meters.add_prediction("a", 0.9, is_unknown=False)
    meters.add_prediction("a", 1.0, is_unknown=False)
    found = meters.counted().confidence
    counts = dict(zip(found.bounds, found.counts, strict=False))
    assert (counts[0.8], counts[0.9], counts[0.999], found.count) == (0, 1, 1, 2)


def test_labels_and_confidences_are_counted_as_they_were_answered(seen: Seen) -> None:
    answers = [seen.client.post("/classify", content=encode(number)).json() for number in range(8)]
    for label in ("good", "defective"):
        count = sum(answer["label"] == label for answer in answers)
        assert seen.value("predictions_total", label=label) == count
    assert seen.value("confidence_count") == 8
    total = sum(answer["confidence"] for answer in answers)
    assert seen.value("confidence_sum") == pytest.approx(total)
    assert seen.value("unknown_total") == 0
    # An answer that names no label is none of these.
    seen.client.post("/embed", content=encode())
    given = {"name": "pixels", "datatype": "UINT8", "shape": [1, 64, 64, 3], "data": [7] * 12288}
    for outputs, counted in (
        ([{"name": "probabilities"}], 8),
        ([{"name": "label"}], 9),
        ([{"name": "probabilities", "parameters": {"classification": 2}}, {"name": "label"}], 10),
    ):
        answer = seen.client.post("/infer", json={"inputs": [given], "outputs": outputs})
        assert answer.status_code == 200, answer.text
        assert seen.value("confidence_count") == counted


def test_unknown_and_the_label_revision_follow_the_label_map(labelled: Seen) -> None:
    assert labelled.value("label_revision") == 0
    assert labelled.client.post("/classify", content=encode()).json()["label"] != "unknown"
    assert labelled.value("unknown_total") == 0
    office = {"Authorization": f"Bearer {OFFICE}"}
    whole = labelled.client.get("/labels").json()
    body = {"map": whole["map"] | {"threshold": 1.0, "unknown": "not sure"}, "base": 0}
    assert labelled.client.put("/labels", json=body, headers=office).status_code == 200
    assert labelled.value("label_revision") == 1
    assert labelled.client.post("/classify", content=encode()).json()["label"] == "not sure"
    assert labelled.value("unknown_total") == 1
    assert labelled.value("predictions_total", label="not sure") == 1
    assert labelled.value("confidence_count") == 2


def test_a_label_store_that_fails_is_counted(labelled: Seen, tmp_path: Path) -> None:
    assert labelled.value("label_refresh_failures_total") == 0
    revision = tmp_path / "labels" / "caps" / "000001.json"
    revision.parent.mkdir(parents=True, exist_ok=True)
    revision.write_text("{")
    asyncio.run(labelled.model.labels.refreshed())
    assert labelled.value("label_refresh_failures_total") == 1
    asyncio.run(labelled.model.labels.refreshed())  # nothing new: it is not read again
    assert labelled.value("label_refresh_failures_total") == 1
    shutil.rmtree(tmp_path / "labels")
    (tmp_path / "labels").write_text("a file where a folder has to be")
    asyncio.run(labelled.model.labels.refreshed())
    assert labelled.value("label_refresh_failures_total") == 2
    assert labelled.value("label_revision") == 0


def test_the_engine_and_its_proof_are_told(seen: Seen) -> None:
    predictor = seen.model.predictor
    facts = {"model": "tiny", "version": "1", "engine": "openvino", "precision": "fp32"}
    digest = bundle_digest(seen.model.manifest)
    facts |= {"precision": predictor.engine.precision, "bundle": digest}
    assert seen.value("engine_info", **facts) == 1
    assert seen.value("proof_cosine") == predictor.proof.lowest_cosine
    expected = predictor.proof.largest_probability_difference
    assert seen.value("proof_probability_difference") == expected
    assert seen.value("proof_seconds") > 0


def test_more_labels_than_can_be_shown_are_counted_together() -> None:
    meters = Meters()
    for number in range(MAX_LABELS + 5):
        meters.add_prediction(f"label {number}", 0.5, is_unknown=False)
    meters.add_prediction("label 0", 0.5, is_unknown=False)
    counted = meters.counted()
    assert len(counted.predictions) == MAX_LABELS + 1
    assert counted.predictions[OTHER_LABELS] == 5
    assert counted.predictions["label 0"] == 2
    without = Meters(has_labels=False)
    without.add_prediction("label 0", 0.5, is_unknown=True)
    assert (without.counted().predictions, without.counted().unknown) == ({}, 1)


def test_a_client_that_leaves_is_counted_and_its_task_ends() -> None:
    meters, inside = Meters(), asyncio.Event()

    async def hang(request: Any) -> Any:
        inside.set()
        await asyncio.Event().wait()

    api = Api({"/classify": {"POST": hang}}, watch=Watch(meters), name_call=lambda _: "classify")

    async def leave() -> None:
        scope = {"type": "http", "method": "POST", "path": "/classify", "headers": []}
        task = asyncio.create_task(api(scope, _nothing, _ignore))
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert meters.counted().errors == {("classify", "http", "client_gone"): 1}


def test_an_answer_that_nobody_waits_for_any_more_is_no_success() -> None:
    """Past Serve nobody cancels a request whose client leaves while its image is scored."""
    meters, told = Meters(), list[Any]()

    class Left:
        disconnected = True

    async def score(request: Any) -> Any:
        return json_reply({})

    async def tell(message: Any) -> None:
        told.append(message)

    api = Api({"/classify": {"POST": score}}, watch=Watch(meters), name_call=lambda _: "classify")
    scope = {"type": "http", "method": "POST", "path": "/classify", "headers": []}
    asyncio.run(api.answer(scope, _nothing, tell, connection=Left()))
    assert (meters.counted().errors, told) == ({("classify", "http", "client_gone"): 1}, [])


def test_an_error_that_only_a_status_tells_has_a_code_too() -> None:
    meters = Meters()

    async def busy(request: Any) -> Any:
        return json_reply({"ready": False}, 503)

    with TestClient(Api({"/ready": {"GET": busy}}, watch=Watch(meters))) as client:
        client.get("/ready")
    assert meters.counted().errors == {("/ready", "http", "http_503"): 1}


class BrokenSink:
    """Fails, and notes how often it was asked."""

    def __init__(self) -> None:
        self.num_calls = 0

    def write(self, figures: Sequence[Figure]) -> None:
        self.num_calls += 1
        raise OSError("no agent")


def test_the_last_figures_are_handed_on_at_the_end_and_a_failing_sink_does_no_harm(
    seen: Seen, caplog: pytest.LogCaptureFixture
) -> None:
    sink, broken = PlainSink(), BrokenSink()
    collect = partial(figures_of, seen.model)
    exporter = Exporter(collect, sink, seconds=30)
    other = Exporter(collect, broken, seconds=0.01)
    assert seen.client.post("/classify", content=encode()).status_code == 200
    exporter.close()
    assert sink.value(f"{PREFIX}requests_total", call="classify", model="tiny") == 1
    time.sleep(0.1)
    other.close()
    assert broken.num_calls > 2
    assert sum("metrics are not handed on" in record.message for record in caplog.records) == 1


def test_metrics_can_be_turned_off(options: ServeOptions) -> None:
    for seen in seeing(options.model_copy(update={"metrics": False})):
        assert seen.client.post("/classify", content=encode()).status_code == 200
        assert seen.value("requests_total") == seen.value("infer_seconds_count") == 0
        assert seen.client.get("/stats").json()["model_stats"][0]["inference_count"] == 1


def test_an_application_without_a_model_counts_its_requests_and_nothing_else() -> None:
    meters = Meters()

    async def index(request: Any) -> Any:
        return json_reply([])

    watch = Watch(meters)
    routes = {"/v2/repository/index": {"POST": index}}
    with TestClient(Api(routes, watch=watch, name_call=call_name)) as client:
        client.post("/v2/repository/index")
        client.get("/v2/repository/index")
    told = {(each.name, each.tags): each.value for each in figures_of_requests(meters)}
    call = (("call", "index"), ("protocol", "http"))
    assert told == {
        (f"{PREFIX}requests_total", call): 2,
        (f"{PREFIX}errors_total", (*call, ("code", "method_not_allowed"))): 1,
    }


def test_the_catalogs_calls_have_the_names_of_grpc_and_what_is_for_people_is_a_page() -> None:
    grpc = set(CALL_NAMES.values())
    for path, name in {
        "/v2": "server",
        "/v2/health/live": "live",
        "/v2/health/ready": "ready",
        "/v2/repository/index": "index",
        "/v2/models/stats": "stats",
        "/v2/repository/models/*/load": "load",
        "/v2/repository/models/*/unload": "unload",
    }.items():
        assert call_name(path) == name
        assert name in grpc
    assert {call_name(path) for path in page_routes()} == {"page"}
    assert {call_name(path) for path in catalog_docs()} == {"page", "openapi.json"}


def test_every_metric_stands_in_the_documentation_and_no_other() -> None:
    text = DOCS.read_text()
    (tags,) = (line for line in text.splitlines() if line.startswith("Every metric of a model has"))
    assert set(re.findall(r"`(\w+)`", tags)) == {*ALL, *OF_RAY}
    rows = [line for line in text.splitlines() if line.startswith("| `ray_sightline_")]
    documented = {row.split("`")[1].removeprefix("ray_") for row in rows}
    assert documented == {metric.full_name for metric in METRICS}
    for metric in METRICS:
        (row,) = (row for row in rows if f"`ray_{metric.full_name}`" in row)
        for tag in metric.tags:
            assert f"`{tag}`" in row, (metric.name, tag)


async def _nothing() -> Any:
    await asyncio.Event().wait()


async def _ignore(message: Any) -> None:
    pass
