"""A served tiny model, and the command as a person at a shell has it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.session import Session
from jobs.score.__main__ import main
from serve_app.model import ServedModel
from tests.bundles import tiny_bundle
from tests.jobs.data.images import jpeg, write
from tests.jobs.score.serving import Border, Site, open_model, served
from tests.raylet import SCORER, session_workers

CLASSES = ("good", "dented", "torn")
NUM_IMAGES = 120  # enough for several parts of a run


@pytest.fixture(autouse=True)
def no_run_is_left() -> Iterator[None]:
    """A test that fails leaves no run behind."""
    from tests.jobs.score.running import end_started  # which takes names from here

    yield
    end_started()


@dataclass(frozen=True)
class Model:
    """A model that is up."""

    server: str
    border: Border

    @property
    def url(self) -> str:
        """Where the classifier answers."""
        return f"{self.server}/v2/models/tiny"


@dataclass(frozen=True)
class Ended:
    """How a run of the command ended."""

    status: int
    line: dict[str, Any]
    shown: str


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A published classifier of three classes."""
    return tiny_bundle(tmp_path_factory.mktemp("models"), classes=CLASSES, size=32)


@pytest.fixture(scope="session")
def opened(
    bundle: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, ServedModel]]:
    """A classifier, and an embedding model."""
    folder = tmp_path_factory.mktemp("models")
    embedding = tiny_bundle(folder, kind="embedding", name="tiny-embedding", size=32)
    models = {"tiny": open_model(bundle), "tiny-embedding": open_model(embedding)}
    yield models
    for model in models.values():
        model.close()


@pytest.fixture(scope="session")
def site(opened: dict[str, ServedModel]) -> Iterator[tuple[Site, str]]:
    """The models behind one server, and its address: to end one takes a fifth of a second."""
    site = Site(opened, Border())
    with served(site) as server:
        yield site, server


@pytest.fixture
def model(site: tuple[Site, str]) -> Model:
    """The models, at a border of their own for each test."""
    behind, server = site
    behind.border = Border()
    return Model(server, behind.border)


class Shell:
    """Runs the command in this process."""

    def __init__(
        self, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        self._capsys, self._caplog = capsys, caplog

    def run(self, *arguments: object) -> Ended:
        """Run it, whatever comes out."""
        self._caplog.clear()
        try:
            status = main([str(each) for each in arguments])
        except SystemExit as ended:
            status = int(str(ended.code))
        out, err = self._capsys.readouterr()
        last = out.splitlines()[-1] if out else ""  # Ray may tell of its workers there
        line = json.loads(last) if last.startswith("{") else {}
        return Ended(status, line, " ".join((err + self._caplog.text).split()))

    def refused(self, *arguments: object) -> str:
        """Return the message of a run that has to end with status 1 and no result."""
        ended = self.run(*arguments)
        assert (ended.status, ended.line) == (1, {}), ended
        return ended.shown


@pytest.fixture
def shell(
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> Shell:
    """A shell without an access key."""
    monkeypatch.delenv("SIGHTLINE_KEY", raising=False)
    return Shell(capsys, caplog)


def work_folder(output: Path) -> Path:
    """Return where an unfinished run of an output lies."""
    return output.with_name(f".{output.name}.parts")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of sound images."""
    write(tmp_path / "images", {f"{n:04}.jpg": jpeg(n) for n in range(NUM_IMAGES)})
    return tmp_path / "images"


@pytest.fixture
def on_ray(ray_session: Session, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command finds the Ray that all tests share, and leaves no worker behind in it."""
    import ray

    from tests.jobs.score.running import end_started, wait_for  # which takes names from here

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    yield
    end_started()
    wait_for(lambda: not session_workers(ray_session, SCORER), 30)
