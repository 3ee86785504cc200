"""Sweeps and range tests through real Ray, with a very small network, and what is left of them when
they are killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
import yaml
from ray.tune.execution import class_cache
from rich.console import Console

from cluster.session import Session
from jobs.config import load_config
from jobs.data.index import Index, build_index
from jobs.train.config import TrainConfig
from jobs.train.freed_memory import TUNABLES, tunables
from jobs.train.history import EpochRecord
from jobs.tune.__main__ import main
from jobs.tune.config import AshaConfig, LrTestConfig, TuneConfig
from jobs.tune.lr_test import run_lr_test
from jobs.tune.records import Record, make_record
from jobs.tune.search import sweep
from jobs.tune.space import Trial
from jobs.tune.sweep import _result, _scheduler, run_sweep
from jobs.tune.trial import run_trial
from models.bundle import open_bundle
from models.errors import ConfigError
from models.storage import open_store
from tests.pages import is_mapped
from tests.photos import write_photos

pytestmark = [pytest.mark.ray, pytest.mark.e2e]

ROOT = Path(__file__).parents[3]
HAS_FIGURES = hasattr(ctypes.CDLL(None), "mallinfo2")  # glibc 2.33
SECONDS = 500  # on a machine that does much else


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, a training and a search on them."""
    path = tmp_path_factory.mktemp("tune")
    write_photos(open_store(path / "photos"), 30)
    training = {
        "name": "shades",
        "runs": str(path / "runs"),
        "store": str(path / "models"),
        "data": {
            "uri": str(path / "photos"),
            "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
        },
        "preprocess": {"height": 32, "width": 32, "resize": "stretch"},
        "network": {
            "backbone": "mobilenetv3_small_050",
            "weights": "none",
            "freeze": "backbone",
            "dropout": 0.0,
        },
        "optimiser": {"lr": 0.01, "warmup_epochs": 0},
        "epochs": 4,
        "batch_size": 8,
        "monitor": "loss",
    }
    search = {
        "name": "night",
        "base": str(path / "train.yaml"),
        "trials": 4,
        "space": {
            "optimiser.lr": {"loguniform": [1e-4, 0.1]},
            "network.weights": {"choice": ["none", "none", str(path / "nowhere.pth")]},
        },
        "asha": {"grace_epochs": 1, "reduction": 2},
        "concurrent": 1,
    }
    (path / "train.yaml").write_text(yaml.safe_dump(training))
    (path / "tune.yaml").write_text(yaml.safe_dump(search))
    return path


@pytest.fixture(scope="module")
def index(ray_session: Session, folder: Path) -> Index:
    """The photos."""
    config = training_config(folder)
    return build_index(config.data, config.preprocess)


def training_config(folder: Path, **changes: object) -> TrainConfig:
    """Return the training that trials differ from."""
    values = yaml.safe_load((folder / "train.yaml").read_text())
    return TrainConfig.model_validate({**values, **changes})


@pytest.mark.faults
@pytest.mark.timeout(2 * SECONDS)
def test_a_sweep_killed_in_the_middle_keeps_its_trials_and_publishes_the_best(
    ray_session: Session,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    arguments = ["--config", str(folder / "tune.yaml")]
    trials = folder / "runs" / "night" / "trials"
    killed = subprocess.Popen(
        [sys.executable, "-m", "jobs.tune", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: len(list(trials.glob("*.json"))) >= 2, killed)
    killed.send_signal(signal.SIGKILL)
    _, log = killed.communicate()
    before = {path.name: path.read_bytes() for path in trials.glob("*.json")}
    assert 2 <= len(before) < 4, log

    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert f"going on with sweep night: {len(before)} of 4 trials have ended" in printed.err
    assert printed.err.count("\ntrial ") == 4 - len(before), "the others are not run again"
    after = {path.name: path.read_bytes() for path in trials.glob("*.json")}
    assert len(after) == 4
    assert {name: after[name] for name in before} == before

    line: dict[str, Any] = json.loads(printed.out.splitlines()[-1])
    records = [json.loads(data) for data in after.values()]
    failed = [record for record in records if record["status"] == "failed"]
    assert line["trials"]["failed"] == len(failed) >= 1
    assert all("nowhere.pth" in record["reason"] for record in failed)
    best = min((r for r in records if r not in failed), key=lambda r: -r["score"])
    assert line["best"] == best["number"]

    # What was published is the best trial, evaluated on the test split.
    bundle = open_bundle(line["bundle"], cache=folder / "cache")
    assert bundle.manifest.run_id == f"night-{best['number']:04}"
    assert line["split"] == "test"
    # Its settings are a configuration as it is.
    chosen = load_config(TrainConfig, line["config"])
    assert chosen.optimiser.lr == best["settings"]["optimiser.lr"]
    assert chosen.run is None
    results = {path.name for path in (folder / "runs" / "night").iterdir()}
    assert results == {
        "sweep.json",
        "trials",
        "best.yaml",
        "parallel_coordinates.png",
        "learning_curves.png",
    }

    # Once more: nothing is left to run, and with another space it is another sweep.
    assert main([*arguments, "publish=false"]) == 0
    assert "\ntrial " not in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "space.optimiser.weight_decay={uniform: [0, 1]}"])
    assert "was about something else before" in capsys.readouterr().err


def test_a_trial_cut_after_an_epoch_goes_on_and_tells_every_epoch_once(
    folder: Path, index: Index
) -> None:
    network = {"backbone": "mobilenetv3_small_050", "weights": "none", "dropout": 0.0}
    config = training_config(folder, network=network, epochs=3)
    first: list[EpochRecord] = []

    def cut(record: EpochRecord) -> None:
        first.append(record)
        raise SystemExit(0)  # as Tune ends the thread of a trial

    with pytest.raises(SystemExit):
        run_trial(config, index, "cut", cut)
    told: list[EpochRecord] = []
    run_trial(config, index, "cut", told.append)
    assert [record.epoch for record in told] == [0, 1, 2]
    assert told[0].train_loss == first[0].train_loss, "the first epoch was not trained again"
    assert not (folder / "runs" / "cut" / "lock").exists()


def test_a_trial_does_not_write_to_a_run_that_another_process_holds(
    folder: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    import jobs.tune.trial
    from jobs.lease import holding

    monkeypatch.setattr(jobs.tune.trial, "PATIENCE_SECONDS", 1.0)
    with (
        holding(str(folder / "runs"), "taken", "name"),
        pytest.raises(ConfigError, match="another run"),
    ):
        run_trial(training_config(folder), index, "taken", lambda record: None)


def test_trials_that_ended_before_a_kill_still_count_for_the_halving(folder: Path) -> None:
    config = training_config(folder)
    trials = [Trial(number, {}, config) for number in (1, 2, 3, 4)]
    ended = {
        number: make_record(number, {}, history(0.1 * number, 0.05), config, seconds=1)
        for number in (1, 2, 3)
    }
    asha = AshaConfig(grace_epochs=1, reduction=2)
    for past, expected in ((ended, "STOP"), ({}, "CONTINUE")):
        scheduler = _scheduler(asha, trials, past)
        new = SimpleNamespace(trial_id="new")
        scheduler.on_trial_add(None, new)
        (worse,) = history(0.9)
        assert scheduler.on_trial_result(None, new, _result(worse, "loss")) == expected


def history(*losses: float) -> list[EpochRecord]:
    """Return epochs with these validation losses."""
    return [EpochRecord(i, 1.0, {"loss": loss}) for i, loss in enumerate(losses)]


@pytest.mark.parametrize("freeze", ["backbone", "none"])
def test_a_range_test_raises_the_rate_of_real_steps_until_the_loss_breaks(
    folder: Path, index: Index, freeze: str
) -> None:
    network = {"backbone": "mobilenetv3_small_050", "weights": "none", "freeze": freeze}
    config = training_config(folder, network=network)
    test = LrTestConfig(start=1e-5, end=1e4, steps=45)
    counted: list[int] = []
    while_training: list[bool] = []

    def advance(count: int) -> None:
        counted.append(count)
        if len(counted) == 20 and HAS_FIGURES:
            while_training.append(is_mapped())

    found = run_lr_test(config, test, index, "range", advance)
    assert len(found.rates) == len(found.losses) == sum(counted) < 45
    assert found.rates[0] == pytest.approx(1e-5)
    steps = [b / a for a, b in zip(found.rates, found.rates[1:], strict=False)]
    assert steps == pytest.approx([1e9 ** (1 / 44)] * len(steps))
    assert found.suggestion.diverged is not None
    # As they began, the losses are of a network that knows nothing; the rate was then truly high.
    assert found.losses[0] == pytest.approx(0.69, abs=0.15)
    assert not (folder / "runs" / "range").exists()
    # Where steps free much, it is kept for the next one; no longer than that.
    if freeze == "none" and HAS_FIGURES:
        assert while_training == [False]
        assert is_mapped()


def test_the_process_of_a_trial_keeps_what_its_thread_frees(
    folder: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TUNABLES, raising=False)
    network = {"backbone": "mobilenetv3_small_050", "weights": "none"}
    workers = {"num_workers": 0, "cpus_per_worker": 1}
    training = training_config(folder, network=network, epochs=1, workers=workers)
    environments: list[str] = []

    class Looking:
        def started(self, number: int) -> None: ...

        def epoch(self, number: int, record: EpochRecord) -> None:
            environments.extend(
                # glibc (2.36) cuts the text into its settings as it reads it.
                Path(f"/proc/{process.pid}/environ").read_text().replace("\0", ":")
                for process in psutil.process_iter(["name", "cmdline"])
                # None of a zombie.
                if any(
                    part.startswith("ray::ImplicitFunc") for part in process.info["cmdline"] or ()
                )
            )

        def ended(self, record: Record) -> None:
            assert record.status == "finished", record.reason

    config = TuneConfig.model_validate(yaml.safe_load((folder / "tune.yaml").read_text()))
    run_sweep(config, [Trial(0, {}, training)], {}, index, Looking())
    assert environments
    settings = f"{TUNABLES}={tunables()[TUNABLES]}"
    assert all(settings in environment for environment in environments)
    assert TUNABLES not in class_cache.DEFAULT_ENV_VARS, "and nothing else of Tune's"


@pytest.mark.parametrize(
    "workers", [{"num_workers": 64}, {"num_workers": 0, "cpus_per_worker": 64}]
)
def test_a_trial_that_this_machine_cannot_hold_is_refused_before_any_runs(
    ray_session: Session, folder: Path, workers: dict[str, object]
) -> None:
    config = TuneConfig.model_validate(yaml.safe_load((folder / "tune.yaml").read_text()))
    training = training_config(folder, workers=workers)
    trials = [Trial(0, {}, training)]
    with pytest.raises(ConfigError, match=r"no room for .*one trial.* Lower train\.workers"):
        sweep(config.model_copy(update={"name": "wide"}), training, trials, Console(quiet=True))
    assert not (folder / "runs" / "wide" / "trials").exists()


def wait_until(condition: Any, process: subprocess.Popen[str]) -> None:
    """Wait until something is true, or the process has ended."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
