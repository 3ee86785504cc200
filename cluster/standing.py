"""A Ray head on this machine that outlives the command: `python -m cluster.session up`, `env` and
`down`.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from cluster.environment import (
    FIXED,
    free_port,
    logical_cpus,
    object_store_bytes,
    session_environment,
    temp_folder,
)
from cluster.processes import end_marked, marked_processes

STATE_FILE = "session.json"
# What `env` sets in a shell, and how a shell forgets it.
ADDRESSES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS")
CONNECTION = (*ADDRESSES, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
FORGET = f"unset {' '.join(CONNECTION)}"


def up(home: Path, dashboard_port: int) -> int:
    """Start a Ray head on this machine with the session's environment and print how to reach it."""
    state = _read_state(home)
    if state is not None and _is_alive(state["mark"]):
        print(
            "a Sightline Ray is running already; `python -m cluster.session down` ends "
            f"it\n{_exports(state)}"
        )
        return 0
    folder = temp_folder(home)
    folder.mkdir(parents=True, exist_ok=True)
    port, token, mark = free_port(), secrets.token_hex(32), secrets.token_hex(8)
    # `python` in `ray job submit -- python ...` is to be the one that has the packages.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, **session_environment(token, mark)}
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head"),
        *("--port", str(port), "--num-cpus", str(logical_cpus()), "--temp-dir", str(folder)),
        *("--object-store-memory", str(object_store_bytes())),
        *("--include-dashboard", "true", "--dashboard-port", str(dashboard_port)),
        # By default one port for all: the agent of a second Ray takes no jobs that are submitted.
        *("--dashboard-agent-listen-port", str(free_port())),
        *("--labels", f"{FIXED}=true", "--disable-usage-stats"),
    ]
    try:
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
    except BaseException:  # Ctrl-C: what has started by then is known to nobody else
        end_marked(mark)
        raise
    if result.returncode != 0:
        end_marked(mark)
        print(f"Ray did not start:\n{result.stdout}{result.stderr}", file=sys.stderr)
        return 1
    dashboard = f"http://127.0.0.1:{dashboard_port}"
    reached_by = (
        f"127.0.0.1:{port}",
        dashboard,
        dashboard,
        environment["RAY_AUTH_MODE"],
        environment["RAY_AUTH_TOKEN"],
    )
    state = {"mark": mark, **dict(zip(CONNECTION, reached_by, strict=True))}
    _write_state(home, state)
    print(_exports(state))
    return 0


def down(home: Path) -> int:
    """End the Ray that `up` started, and nothing else."""
    state = _read_state(home)
    ended = end_marked(state["mark"]) if state is not None else 0
    (home / STATE_FILE).unlink(missing_ok=True)
    print(f"ended {ended} processes" if ended else "no Sightline Ray is running")
    if os.environ.get("RAY_ADDRESS"):
        print(f"this shell still points to a Ray; to forget it: {FORGET}")
    return 0


def env(home: Path) -> int:
    """Print how to reach the Ray that `up` started, for `eval`."""
    state = _read_state(home)
    if state is None or not _is_alive(state["mark"]):
        print(
            "no Sightline Ray is running; start one: python -m cluster.session up", file=sys.stderr
        )
        return 1
    print(_exports(state))
    return 0


def _exports(state: Mapping[str, str]) -> str:
    return "\n".join(
        f"export {name}={shlex.quote(value)}" for name, value in state.items() if name != "mark"
    )


def _is_alive(mark: str) -> bool:
    return bool(marked_processes(mark))


def _read_state(home: Path) -> dict[str, str] | None:
    try:
        state: dict[str, str] = json.loads((home / STATE_FILE).read_text())
    except (OSError, ValueError):
        return None
    return state


def _write_state(home: Path, state: Mapping[str, str]) -> None:
    path = home / STATE_FILE
    home.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)  # it holds the token
    path.write_text(json.dumps(dict(state), indent=2))
