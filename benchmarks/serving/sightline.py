"""Sightline under measurement: bundles served on a Ray of its own, as `serve deploy` does."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.common import ending_by_exception, variable_set
from benchmarks.fixtures import ROOT
from benchmarks.server import Server
from benchmarks.serving.calls import raw
from cluster.environment import MARK, free_port
from cluster.session import SessionOptions, open_session
from jobs.local_serving import deployed, local_config
from models.bundle import open_bundle
from models.kinds import find_kind

SERVE_FILE = ROOT / "configs" / "serve" / "local.yaml"
SECONDS_TO_START = 120
# Ray ends the process that began the session, this one, when the GCS says nothing for a minute; it
# sleeps for longer while others are measured.
PATIENCE = ("RAY_gcs_rpc_server_reconnect_timeout_s", "3600")
SECONDS_TO_SETTLE = 1.0  # after a pause: every timer of Ray is due at once
WARM_UP = (16, 2.0)  # connections, seconds


@dataclass(frozen=True)
class Layout:
    """How a model is laid out; None is what the serve file would choose."""

    replicas: int | None = None
    threads: int | None = None
    decode_threads: int | None = None
    precision: str | None = None


class Sightline(Server):
    """The models of one session. `paths` are where they stand, by the name they were given."""

    def __init__(
        self, paths: Mapping[str, str], images: Path, mark: str, url: str, folder: Path
    ) -> None:
        """`folder` is where Ray keeps its sessions."""
        self.paths = dict(paths)
        super().__init__("Sightline", raw(next(iter(paths.values())), images), mark)
        self.url = url
        self.folder = folder

    def replica_ready_seconds(self) -> float:
        """Return what a replica took from its first import to ready, as it says itself."""
        path = f"{next(iter(self.paths.values()))}/config"
        told = httpx.get(f"{self.url}{path}", timeout=SECONDS_TO_START).raise_for_status().json()
        return float(told["sightline"]["start"]["total"])

    def resume(self) -> None:
        """Let them go on, and wait until Ray has found its feet."""
        super().resume()
        time.sleep(SECONDS_TO_SETTLE)


@contextmanager
def serving_sightline(
    bundles: Mapping[str, str], images: Path, layouts: Mapping[str, Layout] | None = None
) -> Iterator[Sightline]:
    """Yield Sightline with a model for each bundle, by name, warm, and the first one ready to be
    loaded with the images. Each model is laid out as `layouts` says for its name. Raises
    `EngineError` with Serve's message if it does not start.
    """
    # The processes of the session import the packages of this checkout, installed or not.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with (
        ending_by_exception(),
        variable_set("PYTHONPATH", path),
        variable_set(*PATIENCE),
        tempfile.TemporaryDirectory(prefix="sl-") as home,
    ):
        config = serve_config(bundles, layouts or {}, free_port(), Path(home))
        started = time.perf_counter()
        with (
            open_session(SessionOptions(Path(home), dashboard=True, connect=False)) as session,
            deployed(config, session.dashboard_url, timeout_seconds=SECONDS_TO_START) as url,
        ):
            paths = {
                name: application["route_prefix"]
                for name, application in zip(bundles, _models(config), strict=True)
            }
            server = Sightline(paths, images, os.environ[MARK], url, session.folder)
            server.probe()
            server.start_up_seconds = time.perf_counter() - started
            server.learn_idle()
            server.load(*WARM_UP)
            yield server


def serve_config(
    bundles: Mapping[str, str], layouts: Mapping[str, Layout], port: int, home: Path
) -> dict[str, Any]:
    """Return the serve file of the local machine with the bundles and the layouts that are
    measured.
    """
    config = local_config(SERVE_FILE)
    config["http_options"]["port"] = port
    del config["grpc_options"]  # HTTP is measured, and gRPC's port may be in use
    (template,) = _models(config)
    applications = [each for each in config["applications"] if each is not template]
    for shown_as, uri in bundles.items():
        bundle, layout = open_bundle(uri), layouts.get(shown_as, Layout())
        name, kind = bundle.manifest.name, find_kind(bundle.manifest.kind)
        args = {
            "bundle": uri if "://" in uri else str(Path(uri).absolute()),
            **({"label_store": str(home / "labels")} if kind.has_label_map else {}),
            "replicas": layout.replicas,
            "threads": layout.threads,
            "decode_threads": layout.decode_threads,
            **({"precision": layout.precision} if layout.precision else {}),
        }
        path = f"/v2/models/{name}"
        applications.append({**template, "name": name, "route_prefix": path, "args": args})
    return {**config, "applications": applications}


def _models(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [each for each in config["applications"] if "bundle" in (each.get("args") or {})]
