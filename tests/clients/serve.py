"""`python -m tests.clients.serve PYTHON`: serve tiny models over HTTP and gRPC, and let the clients
in another environment, that of the interpreter PYTHON, check them.

Twice: beside the catalog, where gRPC needs the metadata `application`, and a lone model, which
clients find without.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cluster.environment import free_port
from cluster.session import SessionOptions, open_session
from jobs.local_serving import deployed, local_config
from serve_app.oip.messages import CALLS, ENUMS, MESSAGES, STREAM_CALLS
from tests.bundles import tiny_bundle
from tests.serve_app.grpc_ready import wait_until_routed

HERE = Path(__file__).parent
TIMEOUT_SECONDS = 180.0
NOTHING_TO_DO = 5  # pytest's status for a file without a test of that marker


def main(interpreter: str) -> int:
    """Return the worst exit status of the two runs."""
    # Ray's folders have short paths: a Unix socket's holds 107 characters.
    with tempfile.TemporaryDirectory(prefix="sl-") as folder:
        config = _config(Path(folder))
        os.environ["PYTHONPATH"] = str(HERE.parents[1])
        options = SessionOptions(home=Path(folder), dashboard=True, connect=False)
        with open_session(options) as session:
            statuses = []
            for marker, applications in (
                ("not lone", config["applications"]),
                ("lone", [each for each in config["applications"] if each["name"] == "elpv"]),
            ):
                chosen = {**config, "applications": applications}
                with deployed(chosen, session.dashboard_url, timeout_seconds=TIMEOUT_SECONDS):
                    grpc = f"127.0.0.1:{chosen['grpc_options']['port']}"
                    wait_until_routed(grpc, [each["name"] for each in applications])
                    statuses.append(_check(interpreter, marker, chosen))
    return max(statuses)


def _config(folder: Path) -> dict[str, Any]:
    """Return the serve file of the local machine with three tiny models and ports that are free."""
    config = local_config()
    config["http_options"]["port"] = free_port()
    config["grpc_options"]["port"] = free_port()
    catalog = config["applications"][0]
    models = [
        _application(folder, "elpv", "generic"),
        _application(folder, "caps", "dynamic", label_store=str(folder / "labels")),
        _application(folder, "shapes", "embedding"),
    ]
    return {**config, "applications": [catalog, *models]}


def _application(folder: Path, name: str, kind: str, **args: str) -> dict[str, Any]:
    bundle = tiny_bundle(folder / "models", name=name, kind=kind)
    return {
        "name": name,
        "import_path": "serve_app.app:build",
        "route_prefix": f"/v2/models/{name}",
        "args": {"bundle": bundle, "replicas": 1, "num_cpus": 0.1, **args},
    }


def _check(interpreter: str, marker: str, config: dict[str, Any]) -> int:
    addresses = {
        "SIGHTLINE_HTTP": f"127.0.0.1:{config['http_options']['port']}",
        "SIGHTLINE_GRPC": f"127.0.0.1:{config['grpc_options']['port']}",
    }
    tables = {"messages": MESSAGES, "enums": ENUMS, "calls": {**CALLS, **STREAM_CALLS}}
    print(" ".join(f"{name}={address}" for name, address in addresses.items()), flush=True)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        **addresses,
        "SIGHTLINE_MESSAGES": json.dumps(tables),
    }
    command = [interpreter, "-m", "pytest", "-c", str(HERE / "pytest.ini"), "-m", marker]
    # A process each: the messages of two clients have the same names.
    statuses = [
        subprocess.run([*command, str(path)], env=environment, check=False).returncode
        for path in sorted(HERE.glob("check_*.py"))
    ]
    return max(status for status in statuses if status != NOTHING_TO_DO)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
