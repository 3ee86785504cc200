"""One Serve that the scenarios break one after the other, and the table of what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from cluster.environment import free_port
from cluster.session import Session
from tests.bundles import tiny_bundle
from tests.faults.report import Row, save, table
from tests.faults.site import Site


class Figures(list[Row]):
    """The rows so far; each is told at once."""

    def __init__(self, config: pytest.Config) -> None:
        super().__init__()
        self._config = config

    def append(self, row: Row) -> None:
        """Keep a row and print it."""
        super().append(row)
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            print(f"\n{row}")


FIGURES = pytest.StashKey[Figures]()


def pytest_configure(config: pytest.Config) -> None:
    """Keep the figures until the end."""
    config.stash[FIGURES] = Figures(config)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print them all."""
    figures = terminalreporter.config.stash[FIGURES]
    if figures:
        terminalreporter.write_sep("=", "faults")
        terminalreporter.write_line(table(figures))
        terminalreporter.write_line(save(figures))


@pytest.fixture
def figures(pytestconfig: pytest.Config) -> Figures:
    """Where a scenario puts its figures."""
    return pytestconfig.stash[FIGURES]


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A JPEG of 40 kB: more than a network sends at once, more than HAProxy's buffer by default."""
    noise = np.random.default_rng(5).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    pixels = noise.repeat(6, axis=0).repeat(6, axis=1)
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=85)
    return encoded


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with the versions 1 and 2 of the model."""
    store = tmp_path_factory.mktemp("models")
    tiny_bundle(store)
    tiny_bundle(store)
    return store


@pytest.fixture(scope="session")
def site(ray_session: Session) -> Iterator[Site]:
    """A Serve without applications yet; each scenario deploys what it breaks."""
    from ray import serve

    yield Site(ray_session.dashboard_url, free_port(), free_port())
    serve.shutdown()
