"""Engines are chosen by configuration and kept by proof."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from models.bundle import Bundle, describe_file, open_bundle
from models.engines import base, openvino_engine
from models.engines.base import EngineEntry, EngineOptions, Images, Outputs
from models.engines.openvino_engine import OpenVinoEngine
from models.errors import BundleError, ConfigError, EngineError
from models.predictor import REFERENCE, Floats, open_predictor
from tests.bundles import TinyNet, tiny_bundle

ROOT = Path(__file__).parents[2]


def random_images(count: int, size: int = 64) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return noise of the model's size."""
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def spoil_reference(uri: Path, output: str, spoil: Callable[[Floats], Floats]) -> None:
    """Change one stored output, and the digest so that only the proof can notice."""
    path = uri / REFERENCE
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays[output] = spoil(arrays[output].copy())
    np.savez_compressed(path, **arrays)
    manifest = json.loads((uri / "manifest.json").read_text())
    entry = describe_file(path).model_dump()
    manifest["artifacts"] = [
        entry if item["path"] == REFERENCE else item for item in manifest["artifacts"]
    ]
    (uri / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def absent_engine(monkeypatch: pytest.MonkeyPatch) -> str:
    """An engine in the table whose library is not installed."""
    entry = EngineEntry("models.engines.absent", "a_library_nobody_has", "sightline[absent]")
    monkeypatch.setitem(base.ENGINES, "absent", entry)
    return "absent"


@pytest.mark.parametrize("name", ["tiny", "tiny-embedding"])
def test_openvino_reproduces_the_reference(model_store: Path, tmp_path: Path, name: str) -> None:
    bundle = open_bundle(model_store / name / "1", cache=tmp_path)
    predictor = open_predictor(bundle, EngineOptions(engines=("openvino",)))
    assert predictor.engine.name == "openvino"
    assert predictor.proof.lowest_cosine > 0.99
    predictor.close()


def test_a_batch_gives_what_single_images_give(model_store: Path, tmp_path: Path) -> None:
    images = random_images(20)
    bundle = open_bundle(model_store / "tiny" / "1", cache=tmp_path)
    predictor = open_predictor(bundle, EngineOptions(precision="fp32"))
    whole = predictor.predict(images)
    assert whole.probabilities is not None
    expected = TinyNet("generic", 2).run(images)["probabilities"]
    np.testing.assert_allclose(whole.probabilities, expected, atol=1e-4)
    for i in range(len(images)):
        single = predictor.predict(images[i : i + 1])
        assert single.probabilities is not None
        np.testing.assert_allclose(single.probabilities[0], whole.probabilities[i], atol=1e-5)
        np.testing.assert_allclose(single.embedding[0], whole.embedding[i], atol=1e-5)
    predictor.close()


def test_many_threads_get_their_own_answers(model_store: Path, tmp_path: Path) -> None:
    bundle = open_bundle(model_store / "tiny" / "1", cache=tmp_path)
    predictor = open_predictor(bundle)
    images = random_images(64)
    expected = predictor.predict(images).embedding
    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(lambda i: predictor.predict(images[i : i + 1]).embedding[0], range(64)))
    np.testing.assert_allclose(np.stack(got), expected, atol=1e-5)
    predictor.close()


def test_answers_carry_names_and_sorted_scores(model_store: Path, tmp_path: Path) -> None:
    predictor = open_predictor(open_bundle(model_store / "tiny" / "1", cache=tmp_path))
    prediction = predictor.predict(random_images(3))
    answers = predictor.classify(prediction, scores="all")
    for answer in answers:
        assert answer.label in ("good", "defective")
        assert [s.probability for s in answer.scores] == sorted(
            (s.probability for s in answer.scores), reverse=True
        )
        assert sum(s.probability for s in answer.scores) == pytest.approx(1, abs=1e-5)
    assert predictor.classify(prediction, scores="none")[0].scores == ()
    assert len(predictor.classify(prediction, top_k=1)[0].scores) == 1
    predictor.close()


@pytest.mark.parametrize(
    ("output", "spoil", "told"),
    [
        ("probabilities", lambda values: values[:, ::-1], "a probability differs by"),
        ("embedding", lambda values: -values, "an embedding has cosine -1"),
    ],
)
def test_an_engine_that_does_not_reproduce_the_reference_never_serves(
    tmp_path: Path,
    absent_engine: str,
    output: str,
    spoil: Callable[[Floats], Floats],
    told: str,
) -> None:
    uri = Path(tiny_bundle(tmp_path / "m"))
    spoil_reference(uri, output, spoil)
    bundle = open_bundle(uri, cache=tmp_path / "cache")
    with pytest.raises(EngineError, match="openvino") as caught:
        open_predictor(bundle, EngineOptions(engines=("openvino", absent_engine)))
    assert told in str(caught.value)
    assert f"{absent_engine}: " in str(caught.value)  # every engine tried is named


def test_a_reference_that_is_no_numbers_is_the_fault_of_the_bundle(tmp_path: Path) -> None:
    uri = Path(tiny_bundle(tmp_path / "m"))
    spoil_reference(uri, "embedding", lambda values: values * np.nan)
    with pytest.raises(BundleError, match="not finite numbers; publish"):
        open_predictor(open_bundle(uri, cache=tmp_path / "cache"))


def test_an_engine_whose_embeddings_have_not_unit_length_never_serves(
    model_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = OpenVinoEngine.run

    def longer(engine: OpenVinoEngine, images: Images) -> Outputs:
        outputs = run(engine, images)
        return {**outputs, "embedding": outputs["embedding"] * 7}

    monkeypatch.setattr(OpenVinoEngine, "run", longer)
    bundle = open_bundle(model_store / "tiny-embedding" / "1", cache=tmp_path)
    with pytest.raises(EngineError, match=r"length 7\.0000, expected 1"):
        open_predictor(bundle, EngineOptions(engines=("openvino",)))


def test_a_refused_engine_is_kept_in_mind_when_the_next_one_serves(
    model_store: Path, tmp_path: Path, absent_engine: str
) -> None:
    predictor = open_predictor(
        open_bundle(model_store / "tiny" / "1", cache=tmp_path),
        EngineOptions(engines=(absent_engine, "openvino")),
    )
    assert predictor.engine.name == "openvino"
    assert "pip install 'sightline[absent]'" in predictor.refusals[0]
    predictor.close()


def test_a_cpu_that_openvino_cannot_use_refuses_that_engine_and_no_other(
    model_store: Path, tmp_path: Path, absent_engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoCpu:
        """OpenVINO's core where it has no plugin for this machine."""

        def get_property(self, device: str, name: str) -> None:
            raise RuntimeError(f'Exception from core.cpp:\nDevice "{device}" is not registered')

    monkeypatch.setattr(openvino_engine, "shared_core", NoCpu)
    bundle = open_bundle(model_store / "tiny" / "1", cache=tmp_path)
    with pytest.raises(EngineError, match="no engine can serve") as refused:
        open_predictor(bundle, EngineOptions(engines=("openvino", absent_engine)))
    first, second = str(refused.value).splitlines()[1:]
    assert first == '  openvino: OpenVINO cannot use this CPU: Device "CPU" is not registered'
    assert second.startswith("  absent: ")


class Clock:
    """Stands in the place of `time`, and goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        """Return its seconds."""
        return self.now


@pytest.mark.parametrize(
    ("coarse_ms", "fine_ms", "served"),
    [(5, 20, "fp16"), (16, 20, "fp16"), (18, 20, "fp32"), (40, 20, "fp32"), (0.1, 0.25, "fp32")],
)
def test_a_coarser_precision_has_to_be_worth_it(
    model_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    coarse_ms: float,
    fine_ms: float,
    served: str,
) -> None:
    """Of two that pass the proof, as if they took so long, but now and then longer."""
    closed: list[str] = []
    num_runs = dict.fromkeys(("fp16", "fp32"), 0)
    run, close, clock = OpenVinoEngine.run, OpenVinoEngine.close, Clock()

    def slower(self: OpenVinoEngine, images: Images) -> Outputs:
        num_runs[self.precision] += 1
        spent = coarse_ms if self.precision == "fp16" else fine_ms
        clock.now += (spent if num_runs[self.precision] % 3 else 50) / 1e3
        return run(self, images)

    def close_and_tell(self: OpenVinoEngine) -> None:
        closed.append(self.precision)
        close(self)

    monkeypatch.setattr("models.predictor.time", clock)
    monkeypatch.setattr(OpenVinoEngine, "run", slower)
    monkeypatch.setattr(OpenVinoEngine, "close", close_and_tell)
    monkeypatch.setattr(openvino_engine, "precisions", lambda options: ("fp16", "fp32"))
    bundle = open_bundle(model_store / "tiny" / "1", cache=tmp_path)
    predictor = open_predictor(bundle, EngineOptions(engines=("openvino",), threads=1))
    assert predictor.engine.precision == served
    assert closed == [{"fp16": "fp32", "fp32": "fp16"}[served]]
    assert predictor.refusals == ()
    assert predictor.compared == pytest.approx({"fp16": coarse_ms, "fp32": fine_ms})
    predictor.close()


def test_engines_that_were_opened_are_closed_where_the_next_one_raises(
    model_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    open_engine = openvino_engine.open_engine

    def fail_for_fp32(bundle: Bundle, precision: str, options: EngineOptions) -> OpenVinoEngine:
        if precision == "fp32":
            raise MemoryError
        return open_engine(bundle, precision, options)

    monkeypatch.setattr(OpenVinoEngine, "close", lambda self: closed.append(self.precision))
    monkeypatch.setattr(openvino_engine, "precisions", lambda options: ("fp16", "fp32"))
    monkeypatch.setattr(openvino_engine, "open_engine", fail_for_fp32)
    bundle = open_bundle(model_store / "tiny" / "1", cache=tmp_path)
    with pytest.raises(MemoryError):
        open_predictor(bundle, EngineOptions(engines=("openvino",)))
    assert closed == ["fp16"]


def test_a_device_that_fails_is_an_engine_error_and_frees_its_stream(
    model_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(model_store / "tiny" / "1", cache=tmp_path)
    predictor = open_predictor(bundle, EngineOptions(threads=1))
    with monkeypatch.context() as patch:
        patch.setattr("openvino.InferRequest.start_async", fail)
        for _ in range(3):  # more often than there are streams
            with pytest.raises(EngineError, match="OpenVINO failed: out of memory"):
                predictor.predict(random_images(1))
        with pytest.raises(EngineError, match="out of memory"):
            open_predictor(bundle, EngineOptions(engines=("openvino",)))
    assert len(predictor.predict(random_images(1)).embedding) == 1
    predictor.close()


def fail(*_: object, **__: object) -> None:
    """Fail as OpenVINO does."""
    raise RuntimeError("Exception from src/core.cpp:1\nout of memory")


def test_an_unknown_engine_lists_the_known_ones(model_store: Path, tmp_path: Path) -> None:
    bundle = open_bundle(model_store / "tiny" / "1", cache=tmp_path)
    with pytest.raises(ConfigError, match=r"'caffe'.*openvino"):
        open_predictor(bundle, EngineOptions(engines=("caffe",)))


@pytest.mark.parametrize("shape", [(1, 63, 64, 3), (64, 64, 3), (1, 3, 64, 64)])
def test_images_of_the_wrong_shape_are_refused(
    model_store: Path, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    predictor = open_predictor(open_bundle(model_store / "tiny" / "1", cache=tmp_path))
    with pytest.raises(EngineError, match=r"\(N, 64, 64, 3\)"):
        predictor.predict(np.zeros(shape, dtype=np.uint8))
    predictor.close()


TWO_MODELS = """
import signal, sys
from pathlib import Path
from models.bundle import open_bundle
from models.engines.base import EngineOptions
from models.predictor import open_predictor

bundle = open_bundle(sys.argv[1], cache=Path(sys.argv[2]))
options = EngineOptions(engines=("openvino",), precision="fp32", threads=1)
first, second = open_predictor(bundle, options), open_predictor(bundle, options)
first.close()
del first
second.close()
del second
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(3))
signal.raise_signal(signal.SIGTERM)
"""


def test_a_signal_is_handled_after_two_models_have_come_and_gone(
    model_store: Path, tmp_path: Path
) -> None:
    """As a replica that is ended after its model was replaced."""
    command = [sys.executable, "-c", TWO_MODELS, str(model_store / "tiny" / "1"), str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 3, (ended.returncode, ended.stderr[-2000:])
