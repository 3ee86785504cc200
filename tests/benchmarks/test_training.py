"""The training benchmark: its plan, the loops that need no Ray, what it makes of its steps."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import common
from benchmarks.common import Report
from benchmarks.ingest.sets import synthetic_samples, write_loose
from benchmarks.serving.rounds import FAILED
from benchmarks.serving.steps import Steps
from benchmarks.training import gpu, trainer
from benchmarks.training.__main__ import make_setting
from benchmarks.training.gpu import flops_per_image, peak_of
from benchmarks.training.plan import FULL, OURS, PLAIN, QUICK, entries
from benchmarks.training.results import rows, summarise
from benchmarks.training.trainer import Request
from benchmarks.training.waves import EPOCHS, RESUMING, TRAINING
from benchmarks.training.ways import timm_script
from benchmarks.training.ways.loops import Photos
from benchmarks.training.ways.sightline import make_config

BEST_PEER = "torch DataLoader, plain loop"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Two wait for each other at every small layer, far longer than it takes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set") / "loose"
    write_loose(folder, synthetic_samples(40))
    return folder


def request_for(module: str, uri: Path, **options: object) -> Request:
    return Request(module, str(uri), "test_resnet", 32, 8, 2, 0, dict(options))


def test_the_plain_loop_answers_with_the_speed_of_its_later_epochs(
    loose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "request").write_text(request_for("plain", loose).dump())
    monkeypatch.setattr(
        sys, "argv", ["trainer", str(tmp_path / "request"), str(tmp_path / "answer")]
    )
    assert trainer.main() == 0
    found = json.loads((tmp_path / "answer").read_text())
    assert len(found["epochs"]) == 2
    assert found["per_second"] == found["epochs"][1] > 0


def test_all_loops_see_every_image_with_its_class(loose: Path) -> None:
    photos = Photos(request_for("plain", loose))
    labels = [photos[number][1] for number in range(len(photos))]
    assert len(photos) == 40
    assert sorted(set(labels)) == list(range(len(photos.classes)))
    assert photos[0][0].shape == (32, 32, 3)


def test_sightline_trains_the_same_network_on_the_same_batches(loose: Path) -> None:
    config = make_config(Request("sightline", str(loose), "test_resnet", 64, 32, 3, 4, {}))
    assert config.batch_size * config.workers.num_workers == 32
    assert (config.preprocess.height, config.data.source) == (64, "folder")
    assert config.network.weights == "none"
    assert config.optimiser.backbone_lr_scale == 1
    config = make_config(request_for("sightline", loose.parent / "packed", every_steps=1))
    assert config.data.source == "packed"
    assert config.checkpoint.every_steps == 1


LOG = """
Train: 0 [   0/4 (  0%)]  Loss: 2.31 (2.31)  Time: 1.914s,   16.72/s  (1.914s,   16.72/s)  LR: 1e-4
Train: 0 [   3/4 (100%)]  Loss: 2.25 (2.29)  Time: 0.702s,   45.58/s  (1.011s,   31.65/s)  LR: 1e-4
Train: 1 [   3/4 (100%)]  Loss: 2.11 (2.19)  Time: 0.702s,   45.58/s  (0.711s,   45.01/s)  LR: 1e-4
"""


def test_the_speed_of_timms_script_is_that_of_whole_epochs() -> None:
    assert timm_script.epoch_speeds(LOG) == [31.65, 45.01]


def test_without_the_script_its_line_says_why(loose: Path) -> None:
    with pytest.raises(RuntimeError, match="no part of the package on PyPI"):
        timm_script.run(request_for("timm_script", loose))


def test_quick_measures_what_the_goals_speak_of() -> None:
    names = [entry.name for entry in entries(QUICK, None) if entry.is_quick]
    assert names[0] == PLAIN
    assert {OURS, f"{OURS}, Ray Train, 1 worker", BEST_PEER, "Lightning"} <= set(names)
    assert {f"{OURS}, Ray Train, {count} workers" for count in (2, 4)} <= {
        entry.name for entry in entries(FULL, None)
    }


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    steps = Steps(tmp_path / "steps.jsonl", {})
    speeds = {
        PLAIN: [50.0, 40.0, 100.0],
        OURS: [49.0, 38.0, 99.0],
        f"{OURS}, Ray Train, 1 worker": [48.0, 40.0, 90.0],
        f"{OURS}, Ray Train, 2 workers": [24.0, 20.0, 45.0],
        f"{OURS}, a checkpoint each step": [24.5, 19.0, 49.5],
        BEST_PEER: [47.0, 37.0, 98.0],
        "Lightning": [30.0, 30.0, 30.0],
    }
    for name, series in speeds.items():
        for repetition, speed in enumerate(series):
            found = {"per_second": speed, "waiting_share": [0.5, 0.01, 0.03]}
            steps.add((TRAINING, name, EPOCHS, repetition), found)
    for repetition, again in enumerate((0, 1)):
        found = {"steps_again": again, "seconds_to_first_step": 2.0 + again}
        steps.add((RESUMING, repetition), found)
    steps.add((FAILED, TRAINING, "timm train.py"), {"reason": "no script"})
    return steps


def test_ratios_are_those_of_each_repetition(steps: Steps) -> None:
    given = argparse.Namespace(quick=False, images=None, timm_train=None, backbone="test_resnet")
    setting, _ = make_setting(given)
    report = Report("training")
    summarise(steps, setting, report)
    ratios, figures = report.ratios, report.figures
    assert ratios["sightline_to_plain"] == pytest.approx(0.98)
    assert ratios["sightline_ray_train_1_worker_to_plain"] == pytest.approx(0.96)
    assert ratios["sightline_to_best_peer"] == pytest.approx(38 / 37)
    assert figures["best_peer"] == BEST_PEER
    assert ratios["checkpoint_each_step_to_none"] == pytest.approx(0.5)
    assert ratios["workers_2_to_1"] == pytest.approx(0.5)
    assert "workers_4_to_1" not in ratios
    assert figures["waiting_share"] == pytest.approx(0.02)
    assert figures["resume_steps_again"] == 1
    assert report.failures == {"timm train.py": "no script"}
    table = rows(steps, setting)
    assert [row.name for row in table][:2] == [PLAIN, OURS]
    assert table[1].cells == (OURS, "49.0", "38.0 to 99.0", "0.980", "2.0%")


def test_operations_are_counted_forward_and_backward() -> None:
    # 4.09 GMAC forward (He et al. 2015 have 3.8 for v1); twice that backward, but for one layer.
    assert flops_per_image("resnet50", 224) / 1e9 == pytest.approx(3 * 2 * 4.09, rel=0.03)


def test_a_card_is_known_by_its_name() -> None:
    assert peak_of("NVIDIA H100 PCIe") == 756e12
    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of("cpu") is None


def test_the_step_of_the_gpu_is_tried_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "OUT", tmp_path)
    monkeypatch.setattr(common, "OUT", tmp_path)
    sizes = ["--batch-size", "4", "--side", "32", "--steps", "1", "--repetitions", "2"]
    assert gpu.main(["--device", "cpu", "--backbones", "test_resnet", "--no-compile", *sizes]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found["figures"]) == {
        "test_resnet_from_memory_images_per_s",
        "test_resnet_on_the_device_images_per_s",
    }
    assert (tmp_path / "training-gpu.png").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_a_gpu_is_faster_with_its_images_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "OUT", tmp_path)
    monkeypatch.setattr(common, "OUT", tmp_path)
    assert gpu.main(["--backbones", "resnet18", "--no-compile", "--steps", "10"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    assert (
        figures["resnet18_on_the_device_images_per_s"]
        > 0.95 * figures["resnet18_from_memory_images_per_s"]
    )
