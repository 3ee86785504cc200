"""From images in a bucket to a published, proven bundle, through real Ray; and what bad input
gets instead.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow.compute as pc
import pytest
import ray
import torch
from ray.util.state import list_actors
from rich.console import Console

from cluster.session import Session
from jobs.data.index import build_index
from jobs.data.locate import read_image
from jobs.evaluate.config import EvaluateJob
from jobs.evaluate.outputs import collect
from jobs.evaluate.run import evaluate_set, open_subject
from jobs.train import stages, trainer
from jobs.train.borders import Notice, Place, Status, StoppedError, Watcher
from jobs.train.config import TrainConfig
from jobs.train.history import EpochRecord
from jobs.train.pipeline import Outcome, run_training
from jobs.train.ray_train import _await_workers
from jobs.train.worker import open_images, prepare_network, run_worker
from jobs.train.workers_config import WorkersConfig
from models.bundle import list_versions, open_bundle
from models.errors import ConfigError, DataError
from models.predictor import open_predictor
from models.storage import open_store
from models.validation_outputs import load_outputs
from tests.conftest import S3Server
from tests.faults.training.runs import Photos, Seen
from tests.jobs.data.images import class_files, write
from tests.pages import is_mapped
from tests.photos import photo, write_photos
from tests.submission import submit

pytestmark = [pytest.mark.ray, pytest.mark.e2e]

SIZE = 32
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> str:
    """A bucket with photos under `photos/`."""
    uri = s3_server.make_bucket(f"train-{uuid4().hex[:8]}")
    write_photos(open_store(f"{uri}/photos"))
    return uri


class Silent(Watcher):
    """A watcher that does not care."""


def train(bucket: str, name: str, **changes: object) -> Outcome:
    """Train a very small network on the bucket's photos."""
    values: dict[str, object] = {
        "name": name,
        "store": f"{bucket}/models",
        "runs": f"{bucket}/runs",
        "data": {
            "uri": f"{bucket}/photos",
            "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
        },
        "preprocess": {"height": SIZE, "width": SIZE, "resize": "stretch"},
        "network": {"backbone": "mobilenetv3_small_050", "weights": "none", "dropout": 0.0},
        "optimiser": {"lr": 0.01, "backbone_lr_scale": 1.0},
        "epochs": 2,
        "batch_size": 8,
        **changes,
    }
    return run_training(TrainConfig.model_validate(values), Console(quiet=True))


def test_a_bucket_of_images_becomes_a_bundle_that_opens_and_answers(
    ray_session: Session, bucket: str, tmp_path: Path
) -> None:
    outcome = train(
        bucket,
        "frozen",
        run="night-shift",
        network={
            "backbone": "mobilenetv3_small_050",
            "weights": "none",
            "freeze": "backbone",
            "num_views": 2,
        },
        augment={"horizontal_flip": True},
        epochs=20,
    )
    assert outcome.evaluation.accuracy == 1.0
    assert outcome.evaluation.num_images == outcome.index.num_images("test")
    broken = {Path(item.path).name for item in outcome.index.quarantine}
    assert broken == {"text.jpg", "empty.jpg", "cut.jpg"}
    listed = open_store(f"{bucket}/runs").read("night-shift/quarantine.jsonl").decode()
    assert {Path(json.loads(line)["path"]).name for line in listed.splitlines()} == broken
    bundle = open_bundle(f"{bucket}/models/frozen/1", cache=tmp_path)
    assert bundle.manifest.metrics["accuracy"] == 1.0
    assert {a.path for a in bundle.manifest.artifacts} >= {"model_card.md", "report.html"}
    # All validation images are right: the surer the better, without an end.
    assert bundle.manifest.temperature == 1.0
    assert "the loss falls on" in outcome.temperature.reason
    predictor = open_predictor(bundle)
    rows = outcome.index.table.filter(pc.equal(outcome.index.table["split"], "test"))
    images = np.stack([predictor.prepare(read_image(path)) for path in rows["path"].to_pylist()])
    answers = [answer.label for answer in predictor.classify(predictor.predict(images))]
    assert answers == [outcome.index.classes[label] for label in rows["label"].to_pylist()]
    predictor.close()


def test_what_the_labels_leave_unsure_is_calibrated_in_the_bundle(
    ray_session: Session, tmp_path: Path
) -> None:
    for number in range(240):
        light = number % 2 == 0
        # A quarter of the labels is wrong: nothing can be surer than three in four.
        label = ("light" if light else "dark") if number % 8 > 1 else ("dark" if light else "light")
        open_store(tmp_path / "photos").write(f"{label}/{number}.jpg", photo(number, light))
    outcome = train(
        str(tmp_path),
        "unsure",
        network={
            "backbone": "mobilenetv3_small_050",
            "weights": "none",
            "freeze": "backbone",
            "dropout": 0.0,
        },
        optimiser={"lr": 0.01, "label_smoothing": 0.0},
        epochs=20,
    )
    fitted, manifest = outcome.temperature, outcome.published.manifest
    assert fitted.reason == "", fitted
    assert fitted.num_images == outcome.index.num_images("validation")
    assert manifest.temperature == fitted.value != 1.0
    assert fitted.loss_after is not None
    assert fitted.loss_before is not None
    assert fitted.loss_after < fitted.loss_before
    assert manifest.metrics["validation_ece"] == fitted.error_after
    assert manifest.metrics["ece"] == outcome.report.calibration.error
    assert manifest.metrics["ece_at_temperature_1"] == outcome.report.error_without
    # What is served is what was fitted: its loss on the validation images is the fitted one.
    images = open_images(
        TrainConfig.model_validate(
            {
                "name": "unsure",
                "data": {"uri": f"{tmp_path}/photos"},
                "preprocess": manifest.preprocess.model_dump(),
            }
        ),
        outcome.index,
    )
    bundle = open_bundle(outcome.published.uri, cache=tmp_path / "cache")
    served = collect(bundle, images, "validation", lambda *_, **__: None)
    likelihood = served.probabilities[np.arange(len(served.truth)), served.truth]
    assert -np.log(likelihood).mean() == pytest.approx(fitted.loss_after, abs=0.02)
    report = bundle.path("report.html").read_text()
    assert f"{fitted.value:.3f}" in report
    assert str(tmp_path) not in report  # where the images lie is nobody's business
    assert len(report) < 400_000
    assert f"{fitted.value:.3f}" in bundle.path("model_card.md").read_text()
    # Later, with the data settings of the training, the same images are held out again.
    data = {"uri": f"{tmp_path}/photos", "split": {"train": 0.6, "validation": 0.2, "test": 0.2}}
    later, _ = evaluate_set(
        EvaluateJob.model_validate({"data": data}),
        open_subject(outcome.published.uri, None),
        open_store(tmp_path / "evaluated"),
        Console(quiet=True),
        split="test",
    )
    assert (later.figures.confusion == outcome.report.figures.confusion).all()
    assert later.figures.accuracy == outcome.report.figures.accuracy


def test_an_image_that_breaks_after_the_index_was_made_is_listed_with_the_run(
    ray_session: Session, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos = tmp_path / "photos"
    write_photos(open_store(photos), count=30)
    config = TrainConfig.model_validate(
        {
            "name": "late",
            "runs": str(tmp_path / "runs"),
            "data": {"uri": str(photos), "max_broken_share": 0.2},
            "preprocess": {"height": SIZE, "width": SIZE},
            "network": {"backbone": "mobilenetv3_small_050", "weights": "none"},
            "batch_size": 8,
            "epochs": 1,
        }
    )
    index = build_index(config.data, config.preprocess)
    broken = index.table.filter(pc.equal(index.table["split"], "train"))["path"][0].as_py()
    Path(broken).write_bytes(b"broken by now")
    network = prepare_network(config, 2)
    place = Place(torch.device("cpu"))
    run_worker(config, index, "run", network, place, Silent())
    listed = (tmp_path / "runs" / "run" / "quarantine-training-0.jsonl").read_text()
    assert json.loads(listed)["path"] == broken
    assert "1 images could not be read any more" in caplog.text


def test_a_submitted_job_trains_on_the_cluster_and_its_log_shows_the_result(
    ray_session: Session, tmp_path: Path
) -> None:
    write_photos(open_store(tmp_path / "photos"), count=30)
    command = [
        *(sys.executable, "-m", "jobs.train", "configs/train/elpv.yaml"),
        f"data.uri={tmp_path / 'photos'}",
        f"store={tmp_path / 'models'}",
        f"runs={tmp_path / 'runs'}",
        *("name=submitted", "data.max_broken_share=0.1", "preprocess.height=32"),
        *("preprocess.width=32", "epochs=5"),
    ]
    done = submit(ray_session, command, "--working-dir", str(ROOT))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "top-1 accuracy" in done.stdout
    assert list_versions(str(tmp_path / "models"), "submitted") == [1]


def test_sigterm_when_no_step_is_left_to_see_it_still_ends_the_run(
    ray_session: Session, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_and_be_ended(*arguments: Any) -> Any:
        trained = trainer.train(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return trained

    monkeypatch.setattr(stages, "train", train_and_be_ended)
    network = {"backbone": "mobilenetv3_small_050", "weights": "none", "freeze": "backbone"}
    with pytest.raises(StoppedError, match="because of SIGTERM; to go on, run again with run=late"):
        train(bucket, "late", run="late", network=network)
    assert list_versions(f"{bucket}/models", "late") == []


def test_the_whole_network_is_trained_in_this_process_and_keeps_outputs_for_label_maps(
    ray_session: Session, bucket: str, tmp_path: Path
) -> None:
    outcome = train(bucket, "whole", kind="dynamic")
    outputs = load_outputs(open_bundle(outcome.published.uri, cache=tmp_path))
    assert outputs is not None
    assert outputs.split == "validation"
    assert len(outputs.truth) == outcome.index.num_images("validation")
    assert outcome.published.manifest.metrics["accuracy"] == outcome.evaluation.accuracy
    assert [record.epoch for record in outcome.history] == [0, 1]
    assert outcome.history[0].images_per_second > 0
    assert 0 <= outcome.history[0].waiting_share <= 1


def test_images_that_are_kept_in_memory_are_not_read_again(
    ray_session: Session, tmp_path: Path
) -> None:
    photos = Photos.write(str(tmp_path))

    class Spoiler(Seen):
        def epoch(self, record: EpochRecord) -> None:
            super().epoch(record)
            shutil.rmtree(tmp_path / "photos", ignore_errors=True)

    kept = photos.config("kept", workers={"num_workers": 0}, epochs=2)
    assert len(trainer.train(kept, photos.index, "kept", Spoiler()).history) == 2


def test_a_class_that_no_model_can_serve_is_refused_before_it_is_trained(
    ray_session: Session, tmp_path: Path
) -> None:
    """It was refused when the trained model was judged, after hours."""
    write(tmp_path / "photos", class_files({"unknown": 12, "good": 12}))
    with pytest.raises(DataError, match="'unknown', which is what a served model answers"):
        train(str(tmp_path), "strange", run="strange")
    assert not (tmp_path / "runs" / "strange" / "checkpoints").exists()


def test_a_run_that_one_worker_of_ray_train_does_ends_at_once_when_it_is_interrupted(
    ray_session: Session, tmp_path: Path
) -> None:
    """Ray Train once started further groups of workers, each of which raised the same again."""
    photos = Photos.write(str(tmp_path))

    class Interrupting(Seen):
        def show(self, status: Status) -> None:
            raise KeyboardInterrupt

    def num_workers() -> int:
        """Count those of all trainings that this Ray has seen."""
        filters = [("class_name", "=", "RayTrainWorker")]
        return len(list_actors(ray_session.dashboard_url, filters=filters, limit=1000))

    workers = {"num_workers": 1, "cpus_per_worker": 1}
    config = photos.config("one", workers=workers, epochs=200)
    before = num_workers()
    with pytest.raises(KeyboardInterrupt):
        trainer.train(config, photos.index, "one", Interrupting())
    time.sleep(5)
    assert num_workers() == before + 1
    whole = photos.config("one", workers={"num_workers": 0}, epochs=3)
    assert len(trainer.train(whole, photos.index, "one", Seen()).history) == 3


def test_a_frozen_run_that_is_done_again_has_the_history_of_what_it_publishes(
    ray_session: Session, tmp_path: Path
) -> None:
    photos = Photos.write(str(tmp_path))
    network = {"backbone": "mobilenetv3_small_050", "weights": "none", "freeze": "backbone"}
    for epochs in (4, 2):
        config = photos.config(
            "again",
            workers={"num_workers": 0},
            network=network,
            epochs=epochs,
            optimiser={"lr": 0.01 * epochs},
            tracking={"sample_ids": False},
        )
        trained = trainer.train(config, photos.index, "again", Seen())
        assert len(trained.history) == epochs


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
def test_what_a_step_frees_is_kept_while_training_and_no_longer(
    ray_session: Session, tmp_path: Path
) -> None:
    photos = Photos.write(str(tmp_path))
    while_training: list[bool] = []

    class Measuring(Seen):
        def epoch(self, record: EpochRecord) -> None:
            super().epoch(record)
            while_training.append(is_mapped())

    assert is_mapped()
    config = photos.config("freed", workers={"num_workers": 0}, epochs=1)
    trainer.train(config, photos.index, "freed", Measuring())
    assert while_training == [False]
    assert is_mapped()


def test_two_ray_train_workers_train_a_head_together(
    ray_session: Session, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the working directory, which those workers do not share."""
    monkeypatch.chdir(tmp_path)
    outcome = train(
        bucket,
        "pair",
        runs="runs",
        workers={"num_workers": 2},
        network={"backbone": "mobilenetv3_small_050", "weights": "none", "freeze": "backbone"},
    )
    assert [record.epoch for record in outcome.history] == [0, 1]
    for record in outcome.history:  # shares go by whole batches, so they are unequal
        seen = (record.validation or {})["num_images"]
        assert seen == outcome.index.num_images("validation")


@pytest.mark.parametrize("shard", [False, True])
def test_two_ray_train_workers_follow_the_whole_recipe(
    ray_session: Session, bucket: str, shard: bool
) -> None:
    outcome = train(
        bucket,
        f"recipe-{shard}".lower(),
        workers={"num_workers": 2, "shard": shard},
        network={
            "backbone": "mobilenetv3_small_050",
            "weights": "none",
            "head_epochs": 1,
            "drop_path": 0.1,
        },
        augment={"randaugment_ops": 1, "erase": 0.2, "mixup_alpha": 0.2, "cutmix_alpha": 1.0},
        optimiser={"kind": "sgd", "lr": 0.01, "layer_decay": 0.9, "schedule": "one_cycle"},
        loss={"kind": "focal"},
        balance="weights",
        accumulate=2,
        epochs=3,
    )
    assert [record.epoch for record in outcome.history] == [0, 1, 2]
    assert all(np.isfinite(record.train_loss) for record in outcome.history)
    for record in outcome.history:
        seen = (record.validation or {})["num_images"]
        assert seen == outcome.index.num_images("validation")


def test_workers_that_would_leave_no_cpu_to_read_images_are_refused(
    ray_session: Session, bucket: str
) -> None:
    with pytest.raises(ConfigError, match=r"no room for 65 x 1 CPU: .*One CPU is for the tasks"):
        train(bucket, "greedy", workers={"num_workers": 64})
    assert list_versions(f"{bucket}/models", "greedy") == []


def test_a_run_that_waits_for_nodes_ends_when_it_is_asked_to(
    ray_session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asked(Watcher):
        def notice(self) -> Notice | None:
            return Notice("SIGTERM", ends=True)

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    with pytest.raises(StoppedError, match=r"before its workers began \(SIGTERM\)"):
        _await_workers(WorkersConfig(num_workers=64), Asked())


def test_an_unknown_network_is_refused_before_anything_is_read(
    ray_session: Session, bucket: str
) -> None:
    with pytest.raises(ConfigError, match="not a network of timm"):
        train(bucket, "typo", network={"backbone": "mobilenet_v33", "weights": "none"})
    assert list_versions(f"{bucket}/models", "typo") == []
