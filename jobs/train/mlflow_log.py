"""A run in MLflow, where `tracking.mlflow_uri` is set: its settings, and the figures of each epoch.

A run that goes on is found by its name again. MLflow is an extra, loaded when it is asked for. A
server that does not answer later on ends no training.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from jobs.train.borders import Watcher
from jobs.train.config import TrainConfig
from jobs.train.history import EpochRecord
from models.errors import ConfigError

logger = logging.getLogger(__name__)

TAG = "sightline.run"
LONGEST_VALUE = 500  # of a setting, which MLflow takes


class MlflowLog(Watcher):
    """Of the first worker."""

    def __init__(self, config: TrainConfig, run_id: str) -> None:
        self._client = open_client(config)
        self._run = ""
        with_settings = dict(_flat(config.model_dump(mode="json")))
        self._guarded(lambda: self._begin(config.name, run_id, with_settings))

    def epoch(self, record: EpochRecord) -> None:
        """Log its figures."""
        figures = {
            "train_loss": record.train_loss,
            "images_per_second": record.images_per_second,
            "waiting_share": record.waiting_share,
            **{f"validation_{k}": v for k, v in (record.validation or {}).items()},
        }

        def log() -> None:
            for name, value in figures.items():
                self._client.log_metric(self._run, name, value, step=record.epoch + 1)

        self._guarded(log)

    def close(self) -> None:
        """Say how the run ended: well, unless an error is on its way."""
        status = "FINISHED" if sys.exc_info()[0] is None else "FAILED"
        self._guarded(lambda: self._client.set_terminated(self._run, status))

    def _begin(self, experiment: str, run_id: str, settings: Mapping[str, object]) -> None:
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        quoted = run_id.replace("'", "")
        runs = self._client.search_runs([number], f"tags.`{TAG}` = '{quoted}'", max_results=1)
        if runs:
            self._run = runs[0].info.run_id
            self._client.set_terminated(self._run, "RUNNING")
            return
        made = self._client.create_run(number, tags={TAG: run_id}, run_name=run_id)
        self._run = made.info.run_id
        for name, value in settings.items():
            self._client.log_param(self._run, name, str(value)[:LONGEST_VALUE])

    def _guarded(self, call: Any) -> None:
        try:
            call()
        except Exception as error:  # of its many kinds, none is worth a training
            logger.warning("MLflow does not take the figures: %s", error)


def open_client(config: TrainConfig) -> Any:
    """Return MLflow's client. Raises `ConfigError` where MLflow is not installed, or takes no such
    address.
    """
    uri = config.tracking.mlflow_uri
    try:
        import mlflow
    except ImportError as error:
        raise ConfigError(
            f"tracking.mlflow_uri is {uri!r}, but MLflow is not installed here; "
            "`pip install 'sightline[tracking]'`, or leave the setting off"
        ) from error
    try:
        return mlflow.MlflowClient(tracking_uri=uri)
    except mlflow.exceptions.MlflowException as error:
        raise ConfigError(f"tracking.mlflow_uri {uri!r} is no address: {error}") from error


def _flat(values: Mapping[str, object], before: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value
