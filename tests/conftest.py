"""What tests share: one real S3 server and one real Ray for the whole session, started when first
asked for.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, settings

from cluster.environment import free_port
from cluster.session import Session, SessionOptions, open_session
from tests.bundles import tiny_bundle

SECONDS_TO_START = 60

# On a busy machine any example may take long.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@dataclass
class S3Server:
    """An S3 server; the environment variables of this process point to it. It keeps its objects in
    memory, so they are gone when it is stopped.
    """

    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _wait_for(self.endpoint, self.process)

    def stop(self) -> None:
        """End it, whatever it is doing."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def make_bucket(self, name: str) -> str:
        """Make a bucket and return its URI."""
        import boto3  # here, because it takes a second to load

        boto3.client("s3", endpoint_url=self.endpoint).create_bucket(Bucket=name)
        return f"s3://{name}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Count a test that needs the S3 server as slow: starting it takes three seconds."""
    for item in items:
        if "s3_server" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


def s3_environment(endpoint: str) -> dict[str, str]:
    """Return what S3 clients are told, with credentials in the environment only."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    }


@contextmanager
def started_s3() -> Iterator[S3Server]:
    """Start moto's server as a process of its own, and point the environment to it meanwhile."""
    server = S3Server(free_port())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment(server.endpoint).items():
            patch.setenv(name, value)
        try:
            server.start()
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One S3 server for all tests."""
    with started_s3() as server:
        yield server


@pytest.fixture(scope="session")
def ray_session(s3_server: S3Server) -> Iterator[Session]:
    """Start one local Ray, with dashboard, that every test of the session shares.

    It comes after the S3 server, because workers see the environment that Ray was started with.
    """
    with tempfile.TemporaryDirectory(prefix="sl-") as home, opened_ray(Path(home)) as session:
        yield session


@contextmanager
def opened_ray(home: Path) -> Iterator[Session]:
    """Start a local Ray of its own, with its files below `home`."""
    with pytest.MonkeyPatch.context() as patch:
        # Ray's workers import the packages under test from here, installed or not.
        root = str(Path(__file__).parent.parent)
        patch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
        patch.setenv("SIGHTLINE_CACHE", str(home / "cache"))
        patch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # not to be looked at
        with open_session(SessionOptions(home=home, dashboard=True, connect=False)) as session:
            yield session


@pytest.fixture(scope="session")
def model_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local model store with one version of the classifier `tiny` and of the embedding model
    `tiny-embedding`.
    """
    store = tmp_path_factory.mktemp("models")
    tiny_bundle(store)
    tiny_bundle(store, kind="embedding", name="tiny-embedding")
    return store


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"the S3 server ended with status {server.returncode}")
        try:
            httpx.get(url, timeout=2)
        except httpx.HTTPError:
            time.sleep(0.1)
            continue
        return
    raise RuntimeError(f"no S3 server answers at {url} after {SECONDS_TO_START} s")


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
