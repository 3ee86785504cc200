"""A replica that starts while a store is away waits for it, but not for what will never come."""

from __future__ import annotations

from pathlib import Path

import pytest

import serve_app.waiting
from cluster.environment import free_port
from models.errors import AccessError, NotFoundError, ProofError, StorageError
from serve_app.config import ServeOptions
from serve_app.model import open_served
from serve_app.waiting import open_patiently
from tests.bundles import tiny_bundle
from tests.clock import Clock


class Store:
    """A store that fails a number of times."""

    def __init__(self, num_failures: int, error: Exception) -> None:
        self.num_asked = 0
        self._num_failures = num_failures
        self._error = error

    def open(self) -> str:
        """Fail, or open."""
        self.num_asked += 1
        if self.num_asked <= self._num_failures:
            raise self._error
        return "opened"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_app.waiting, "FIRST_PAUSE_SECONDS", 0.01)


def test_a_store_that_comes_back_is_waited_for() -> None:
    store = Store(3, StorageError("no answer"))
    assert open_patiently(store.open, 10) == "opened"
    assert store.num_asked == 4


def test_the_wait_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    store, clock = Store(10**9, StorageError("no answer")), Clock(0)
    monkeypatch.setattr(serve_app.waiting, "time", clock)
    with pytest.raises(StorageError, match="no answer"):
        open_patiently(store.open, 0.1)
    # Asked at 0, 0.01, 0.03 and 0.07 s: another pause would end at 0.15.
    assert store.num_asked == 4
    assert clock.now == pytest.approx(0.07)


@pytest.mark.parametrize(
    "error", [NotFoundError("gone"), AccessError("refused"), ProofError("bad"), ValueError("bug")]
)
def test_what_waiting_cannot_help_is_told_at_once(error: Exception) -> None:
    store = Store(1, error)
    with pytest.raises(type(error)):
        open_patiently(store.open, 10)
    assert store.num_asked == 1


@pytest.mark.slow
def test_a_label_store_that_is_away_does_not_keep_a_replica_from_scoring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    bundle = tiny_bundle(tmp_path, kind="dynamic")
    model = open_served(ServeOptions(bundle=bundle, label_store="s3://labels"))
    try:
        # The store was asked, and asked again, before the model's own names were taken.
        assert model.labels.num_failures > 0
        assert "s3://labels" in str(model.labels.status())
        reading = model.labels.current()
        assert model.labels.facts(reading)["label_revision"] == 0
    finally:
        model.close()
