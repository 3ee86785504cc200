"""What the scenarios break: the applications of one serve file on the session's Ray, and the
processes behind them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import psutil

from cluster.environment import MARK
from cluster.processes import marked_processes

SECONDS_TO_START = 120.0
POLL_SECONDS = 0.25
NAME = "tiny"
PREFIX = f"/v2/models/{NAME}"


@dataclass(frozen=True)
class Site:
    """A Serve that takes serve files at `dashboard_url` and answers at `port`, over gRPC at
    `grpc_port`.
    """

    dashboard_url: str
    port: int
    grpc_port: int

    @property
    def url(self) -> str:
        """Where the model answers."""
        return f"http://127.0.0.1:{self.port}{PREFIX}"

    def deploy(self, args: Mapping[str, Any]) -> None:
        """Ask Serve for the model with these `args` and nothing else; do not wait."""
        from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

        application = {
            "name": NAME,
            "import_path": "serve_app.app:build",
            "route_prefix": PREFIX,
            "args": {"num_cpus": 0.1, "threads": 1, **args},
        }
        config = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": self.port},
            "grpc_options": {
                "port": self.grpc_port,
                "grpc_servicer_functions": ["serve_app.oip.grpc_service:add_inference_service"],
            },
            "logging_config": {"enable_access_log": False},
            "applications": [application],
        }
        ServeSubmissionClient(self.dashboard_url).deploy_applications(config)

    def serve(self, args: Mapping[str, Any], *, replicas: int) -> None:
        """Deploy and wait until that many replicas answer."""
        self.deploy({**args, "replicas": replicas})
        self.wait_until_whole(replicas)
        wait_until(self.is_ready, lambda: f"nothing answers at {self.url}")

    def is_ready(self) -> bool:
        """Say whether the model answers through HAProxy."""
        try:
            return httpx.get(f"{self.url}/ready", timeout=10).status_code == 200
        except httpx.TransportError:
            return False

    def application(self) -> dict[str, Any]:
        """Return what Serve says of the model."""
        from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

        details = ServeSubmissionClient(self.dashboard_url).get_serve_details()
        found: dict[str, Any] = details["applications"].get(NAME, {})
        return found

    def status(self) -> tuple[str, str]:
        """Return the state of the model, and why."""
        found = self.application()
        messages = [each["message"] for each in found.get("deployments", {}).values()]
        return found.get("status", "NONE"), " ".join([found.get("message", ""), *messages])

    def replicas(self) -> list[dict[str, Any]]:
        """Return the replicas that run."""
        return [replica for replica in self.all_replicas() if replica["state"] == "RUNNING"]

    def all_replicas(self) -> list[dict[str, Any]]:
        """Return the replicas in whatever state."""
        deployments = self.application().get("deployments", {}).values()
        return [replica for deployment in deployments for replica in deployment["replicas"]]

    def wanted(self) -> int:
        """Return how many replicas Serve wants to run."""
        deployments = self.application().get("deployments", {}).values()
        return sum(deployment["target_num_replicas"] for deployment in deployments)

    def wait_until_whole(self, replicas: int, *, without: frozenset[int] = frozenset()) -> float:
        """Wait until as many replicas run, none of them of those processes, and the model is
        settled; return when (monotonic).
        """

        def is_whole() -> bool:
            running = {replica["pid"] for replica in self.replicas()} - without
            return len(running) == replicas and self.status()[0] == "RUNNING"

        return wait_until(is_whole, lambda: f"not whole: {self.status()}, {self.replicas()}")


def wait_until(
    happened: Callable[[], bool], otherwise: Callable[[], str], seconds: float = SECONDS_TO_START
) -> float:
    """Wait for something and return when it was so (monotonic)."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(POLL_SECONDS)
    return time.monotonic()


def kill(pid: int) -> float:
    """End a process without any warning; return when (monotonic)."""
    os.kill(pid, signal.SIGKILL)
    return time.monotonic()


def session_processes(word: str) -> list[int]:
    """Return the processes of the session's Ray whose command begins with something that holds a
    word.
    """
    found = []
    for process in marked_processes(os.environ[MARK]):
        with contextlib.suppress(psutil.Error):
            if word in (process.cmdline() or [""])[0]:
                found.append(process.pid)
    return found
