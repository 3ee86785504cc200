"""The serving benchmark without a server: its serve file, requests, rounds, steps and results."""

from __future__ import annotations

import email.parser
import email.policy
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.common import Report
from benchmarks.page import as_markdown
from benchmarks.serving.calls import BATCH, multipart_batches, oip_batches, oip_binary
from benchmarks.serving.labels import seconds_to_all
from benchmarks.serving.plan import QUICK, SHARES, Setting
from benchmarks.serving.results import COLUMNS, paired, rows, summarise
from benchmarks.serving.rounds import FAILED, Contestant, is_whole, measure_rounds
from benchmarks.serving.sightline import Layout, serve_config
from benchmarks.serving.steps import Figures, Steps
from benchmarks.serving.waves import RAW, beside
from benchmarks.variants import as_kind
from models.bundle import open_bundle
from models.predictor import open_predictor
from serve_app.config import ServeOptions, parse_options
from tests.bundles import tiny_bundle

MODEL = "/v2/models/caps"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number:02}.jpg").write_bytes(b"\xff\xd8\xff" + bytes([number]) * number)
    return folder


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    return Steps(tmp_path / "steps.jsonl", {"machine": "this"})


def test_the_serve_file_is_taken_by_the_application(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "models")
    bundles = {kind: as_kind(bundle, kind, tmp_path / "kinds") for kind in ("dynamic", "embedding")}
    config = serve_config(
        {"generic": bundle, **bundles},
        dict.fromkeys(("generic", *bundles), Layout(replicas=2, threads=1, precision="fp32")),
        12345,
        tmp_path,
    )
    assert config["http_options"]["port"] == 12345
    catalog, *models = config["applications"]
    assert catalog["route_prefix"] == "/"
    assert len({each["route_prefix"] for each in models}) == 3
    for each in models:
        options = parse_options(ServeOptions, each["args"], each["name"])
        assert options.replicas == 2
        assert options.precision == "fp32"
        assert (options.label_store is not None) == each["name"].endswith("dynamic")


@pytest.mark.parametrize("kind", ["dynamic", "embedding"])
def test_a_bundle_of_another_kind_passes_its_proof(tmp_path: Path, kind: str) -> None:
    bundle = open_bundle(as_kind(tiny_bundle(tmp_path / "models"), kind, tmp_path / "kinds"))
    assert bundle.manifest.kind == kind
    open_predictor(bundle).close()


def test_a_binary_request_holds_the_file_as_the_protocol_says(images: Path) -> None:
    request = oip_binary(MODEL, images)[3]
    size = int(dict(request.headers)["Inference-Header-Content-Length"])
    (tensor,) = json.loads(request.body[:size])["inputs"]
    elements = request.body[size:]
    assert tensor["parameters"]["binary_data_size"] == len(elements)
    (length,) = struct.unpack("<I", elements[:4])
    assert elements[4:] == (images / "03.jpg").read_bytes()
    assert length == len(elements) - 4


def test_batches_hold_every_image_and_always_sixteen(images: Path) -> None:
    requests = multipart_batches(MODEL, images)
    names = []
    for request in requests:
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers)
        parser = email.parser.BytesParser(policy=email.policy.HTTP)
        parts = list(parser.parsebytes(head.encode() + b"\r\n" + request.body).iter_parts())
        assert len(parts) == BATCH
        names += [part.get_filename() for part in parts]
    assert set(names) == {path.name for path in images.iterdir()}
    first = oip_batches(MODEL, images)[0]
    size = int(dict(first.headers)["Inference-Header-Content-Length"])
    assert json.loads(first.body[:size])["inputs"][0]["shape"] == [BATCH]


def test_a_run_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    first = Steps(path, {"machine": "this"})
    first.add(("same", "ceiling", 0), {"per_second": 3.0})
    first.add(("same", "ceiling", 1), {"per_second": 4.0})
    path.write_text(path.read_text()[:-5])  # killed while it wrote
    again = Steps(path, {"machine": "this"})
    assert again.num_resumed == 1
    again.add(("same", "ceiling", 1), {"per_second": 5.0})
    assert Steps(path, {"machine": "this"}).series("per_second", "same", "ceiling") == [3.0, 5.0]


def test_steps_of_other_settings_or_of_a_finished_run_are_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    Steps(path, {"machine": "this"}).add(("a",), {})
    assert len(Steps(path, {"machine": "this"}, is_fresh=True)) == 0
    Steps(path, {"machine": "this"}).add(("a",), {})
    assert len(Steps(path, {"machine": "another"})) == 0
    finished = Steps(path, {"machine": "another"})
    finished.add(("a",), {})
    finished.finish()
    assert len(Steps(path, {"machine": "another"})) == 0


def test_all_are_measured_in_turns_and_nobody_beside_another(steps: Steps) -> None:
    awake: list[str] = []
    order: list[str] = []

    def contestant(name: str) -> Contestant:
        @contextmanager
        def alone() -> Iterator[None]:
            awake.append(name)
            yield
            awake.remove(name)

        def measure() -> Figures:
            assert awake == [name]
            order.append(name)
            return {"per_second": 1.0}

        return Contestant(name, {"raw": measure}, alone)

    measure_rounds("same", [contestant(name) for name in "abc"], 3, steps)
    assert "".join(order) == "abc" + "bca" + "cab"
    assert is_whole("same", {name: ["raw"] for name in "abc"}, 3, steps)
    measure_rounds("same", [contestant(name) for name in "abc"], 3, steps)
    assert len(order) == 9


def test_one_that_breaks_is_left_out_with_its_reason_and_the_others_go_on(steps: Steps) -> None:
    def broken() -> Figures:
        raise RuntimeError("it ended with status 1")

    contestants = [
        Contestant("a", {"raw": broken}),
        Contestant("b", {"raw": lambda: {"per_second": 2.0}}),
    ]
    measure_rounds("same", contestants, 2, steps)
    assert steps.series("per_second", "same", "b") == [2.0, 2.0]
    assert steps[(FAILED, "same", "a")]["reason"] == "it ended with status 1"
    assert is_whole("same", {"a": ["raw"], "b": ["raw"]}, 2, steps)


def test_one_that_answers_nothing_is_left_out_too(steps: Steps) -> None:
    """A rate of 0 once ended a run of forty minutes, and each that went on with it."""
    measure_rounds("same", [Contestant("a", {"raw": lambda: {"per_second": 0.0}})], 2, steps)
    assert steps.series("per_second", "same", "a") == []
    assert "not one request was answered" in steps[(FAILED, "same", "a")]["reason"]


@pytest.mark.parametrize("name", ["ceiling", "Sightline"])
def test_without_the_ceiling_or_sightline_there_is_a_reason_and_no_table(
    steps: Steps, name: str
) -> None:
    report, setting = Report("serving"), Setting("b", "fp32", Path(), Layout(), (), QUICK)
    other = "Sightline" if name == "ceiling" else "ceiling"
    steps.add(("same", other, "raw body, 16 connections", 0), {"per_second": 5.0})
    steps.add((FAILED, "same", name), {"reason": "it ended"})
    summarise(steps, setting, report)
    assert report.failures == {f"{name} same": "it ended"}
    assert rows(steps, setting) == []


def measured(steps: Steps, sightline: float, peer: float) -> Setting:
    """Fill the steps of a run in which the machine slowed down by a third in the last round."""
    for repetition, slow in enumerate((1.0, 1.0, 2 / 3)):
        figures = {"p50_ms": 10, "p99_ms": 20, "num_ok": 9, "num_429": 0, "num_other": 0}
        steps.add(
            ("same", "ceiling", "2 proc", repetition),
            {"per_second": 100 * slow, "cpu_ms": 20, "others_share": 0.0},
        )
        cpu = {"cpu_ms": 21, "cpu_ms_by_role": {"replicas": 21.0}}
        key = ("same", "Sightline", "raw body, 16 connections", repetition)
        steps.add(key, {**figures, **cpu, "per_second": sightline * slow})
        steps.add(
            ("same", "mosec", "16 connections", repetition), {**figures, "per_second": peer * slow}
        )
    steps.add((FAILED, "own", "mosec"), {"reason": "java is not installed"})
    for share in SHARES:
        rate = {"p50_ms": 30.0, "p99_ms": 50.0 * share, "num_429": 7, "num_other": 0}
        steps.add(("rate", "same", "Sightline", share, 0), {**rate, "num_unanswered": 0})
    return Setting("b", "fp32", Path("images"), Layout(), ("mosec",), QUICK)


def test_ratios_are_paired_within_a_repetition(steps: Steps) -> None:
    report = Report("serving")
    summarise(steps, measured(steps, sightline=90, peer=60), report)
    assert report.ratios["raw_to_ceiling"] == pytest.approx(0.9)
    assert report.ratios["raw_to_mosec"] == pytest.approx(1.5)
    assert report.ratios["overload_p99_to_p99_at_80"] == pytest.approx(3.0 / 0.8)
    assert report.ratios["to_best_peer_same_model"] == pytest.approx(1.5)
    assert report.failures == {"mosec own": "java is not installed"}
    assert paired([1, 2, 9], [1, 1, 3]) == 2


def test_a_change_of_labels_takes_until_the_last_answer_without_it() -> None:
    sent, told = 10.0, 10.2
    assert seconds_to_all(3, sent, told, [(9.0, 2), (10.1, 3)]) == pytest.approx(0.2)
    assert seconds_to_all(3, sent, told, [(10.5, 2), (10.1, 3), (11.0, 4)]) == pytest.approx(0.5)


def test_figures_have_the_names_that_stay(steps: Steps) -> None:
    report, setting = Report("serving"), measured(steps, sightline=90, peer=60)
    figures = {"p50_ms": 1, "p99_ms": 2, "num_ok": 9, "num_429": 0, "num_other": 0}
    for window, per_second in (("16 images, multipart", 95), ("16 images, OIP binary", 80)):
        steps.add(("same", "Sightline", window, 0), {**figures, "per_second": per_second})
    steps.add(("labels",), {"median_ms": 12.0, "most_ms": 30.0})
    steps.add(("start", "same", "Sightline"), {"seconds": 12.0, "replica_s": 1.5})
    steps.add(("start", "own", "Sightline"), {"seconds": 12.0, "replica_s": 0.9})
    steps.add(("start", "own", "mosec"), {"seconds": 2.0})
    summarise(steps, setting, report)
    assert report.ratios["batch16_to_ceiling"] == pytest.approx(0.95)
    assert report.ratios["batch16_oip_binary_to_ceiling"] == pytest.approx(0.8)
    assert report.figures["label_update_to_all_replicas_ms"] == 12.0
    assert report.figures["replica_ready_s"] == 0.9


def test_the_page_of_results_shows_everybody_and_why_one_is_missing(steps: Steps) -> None:
    report = Report("serving")
    setting = measured(steps, sightline=90, peer=60)
    summarise(steps, setting, report)
    table = rows(steps, setting)
    assert [row.name for row in table] == [
        "ceiling: decode+infer, no server",
        "Sightline, raw body, 16 connections",
        "mosec, same model",
    ]
    page = as_markdown("Serving", "Medians.", report, COLUMNS, [row.cells for row in table])
    assert "| Sightline, raw body, 16 connections | 90.0 | 60.0 to 90.0 | 0.900 |" in page
    assert "| mosec own | java is not installed |" in page
    widths = {line.count(" | ") for line in page.splitlines() if line.startswith("| Sightline, ")}
    assert widths == {len(COLUMNS) - 1}


def test_a_peer_without_sightline_beside_it_has_no_ratio(steps: Steps) -> None:
    """A run that was killed between the two once ended in the median of nothing."""
    report, setting = Report("serving"), measured(steps, sightline=90, peer=60)
    steps.add(("own", "mosec", "32 connections", 0), {"per_second": 20.0})
    summarise(steps, setting, report)
    assert "raw_to_mosec_own_way" not in report.ratios
    steps.add(("own", beside("mosec"), RAW, 0), {"per_second": 90.0})
    summarise(steps, setting, report)
    assert report.ratios["raw_to_mosec_own_way"] == pytest.approx(4.5)
