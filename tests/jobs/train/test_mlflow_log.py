"""A run in MLflow: told apart by its name, and never the end of a training."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from jobs.train.history import EpochRecord
from jobs.train.mlflow_log import MlflowLog, open_client
from jobs.train.worker import check_tracking
from models.errors import ConfigError
from tests.jobs.train.test_loop import make_config

RECORD = EpochRecord(0, 0.5, {"accuracy": 0.9}, 100.0, 0.1)
is_missing = importlib.util.find_spec("mlflow") is None


@pytest.mark.skipif(not is_missing, reason="MLflow is installed here")
def test_the_package_to_install_is_named() -> None:
    config = make_config(tracking={"mlflow_uri": "http://localhost:5000"})
    with pytest.raises(ConfigError, match=r"pip install 'sightline\[tracking\]'"):
        check_tracking(config)


@pytest.mark.skipif(is_missing, reason="needs the extra `tracking`")
def test_a_run_that_goes_on_is_one_run_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    config = make_config(tracking={"mlflow_uri": (tmp_path / "mlruns").as_uri()})
    for epoch in range(2):
        log = MlflowLog(config, "night")
        log.epoch(EpochRecord(epoch, 0.5 - epoch / 10, {"accuracy": 0.9}))
        log.close()
    client = open_client(config)
    experiment = client.get_experiment_by_name("shades")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "night"
    assert run.info.status == "FINISHED"
    assert run.data.params["optimiser.lr"] == "0.02"
    losses = client.get_metric_history(run.info.run_id, "train_loss")
    assert [(metric.step, metric.value) for metric in losses] == [(1, 0.5), (2, 0.4)]


@pytest.mark.skipif(is_missing, reason="needs the extra `tracking`")
def test_a_server_that_does_not_answer_ends_no_training(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = make_config(tracking={"mlflow_uri": "http://127.0.0.1:9"})
    log = MlflowLog(config, "night")
    log.epoch(RECORD)
    log.close()
    assert "MLflow does not take the figures" in caplog.text
