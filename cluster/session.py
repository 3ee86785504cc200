"""Connect to a running Ray, or start one here that leaves nothing behind.

Whatever has to be settled before Ray starts is settled here: HAProxy mode, token authentication,
usage reporting off, logs and spilled objects in a folder of the project's own, and more logical
CPUs than training workers take, so that Ray Data always has some.

`RAY_ADDRESS` (set inside a submitted job, or by you) means "connect"; without it a local Ray is
started and stopped with the context. `python -m cluster.session up`, `env` and `down` do the same
for a Ray that outlives the command.

A fact one would get wrong: a Ray that is stopped by force leaves its HAProxy running, and that
answers 500 on the port for ever. So every process of a session carries a mark in its environment,
and ending a session ends them all.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import secrets
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

logger = logging.getLogger(__name__)

MARK = "SIGHTLINE_SESSION"
STATE_FILE = "session.json"
MIN_LOGICAL_CPUS = 4
OBJECT_STORE_SHARE = 0.2
OBJECT_STORE_LIMIT = 8 << 30
# A Unix socket path holds 107 characters; Ray puts about 65 below its temporary folder.
LONGEST_TEMP_DIR = 40
SECONDS_TO_END = 5.0


@dataclass(frozen=True)
class SessionOptions:
    """How to reach or start Ray. `home` is the project's own folder for state."""

    home: Path = Path(".sightline")
    num_cpus: int | None = None  # logical; by default the cores, and at least 4
    dashboard: bool = False  # needed for `serve deploy` and `ray job submit`


@dataclass(frozen=True)
class Session:
    """A Ray to work with. `dashboard_url` is empty when there is no dashboard."""

    is_local: bool
    num_cpus: float
    dashboard_url: str
    folder: Path


def serving_environment() -> dict[str, str]:
    """Return the variables that every node needs before Ray starts so that Serve is fast.

    Each is explained by a measurement in ARCHITECTURE.md.
    """
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1" if usable_cores() <= 4 else "4",
        # Two sessions on one machine would collide on the default ports of HAProxy's own pages.
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
    }


def session_environment(token: str, mark: str) -> dict[str, str]:
    """Return all variables of a local session. What the user has set already wins, except the
    mark.
    """
    wanted = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_DEDUP_LOGS": "1",
        "RAY_TRAIN_V2_ENABLED": "1",
        # Some S3-compatible stores corrupt or refuse the checksums that newer clients add.
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        **serving_environment(),
    }
    return {**{k: v for k, v in wanted.items() if k not in os.environ}, MARK: mark}


def usable_cores() -> int:
    """Return the cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def logical_cpus(configured: int | None = None) -> int:
    """Return how many CPUs to tell Ray of: the cores, but at least 4, so that a training worker and
    Ray Data's tasks always fit beside each other on a small machine."""
    return configured or max(MIN_LOGICAL_CPUS, usable_cores())


def temp_folder(home: Path) -> Path:
    """Return Ray's folder for logs and spilled objects: below `home`, or a short path where that is
    too long.
    """
    wanted = home.absolute() / "ray"
    if len(str(wanted)) <= LONGEST_TEMP_DIR:
        return wanted
    digest = hashlib.sha256(str(wanted).encode()).hexdigest()[:8]
    return Path(tempfile.gettempdir()) / f"sightline-{os.getuid()}-{digest}"


def data_cpus() -> float | None:
    """Return how many tasks should decode at once: the real cores of a local session, however many
    it told Ray of.

    None on a cluster: whatever is free there.
    """
    return None if os.environ.get("RAY_ADDRESS") else float(usable_cores())


@contextmanager
def open_session(options: SessionOptions | None = None) -> Iterator[Session]:
    """Connect to the Ray at `RAY_ADDRESS`, or run a local one for the length of the context."""
    options = options or SessionOptions()
    if os.environ.get("RAY_ADDRESS"):
        with _connected() as session:
            yield session
        return
    with _started(options) as session:
        yield session


@contextmanager
def _connected() -> Iterator[Session]:
    import ray

    already = ray.is_initialized()
    if not already:
        ray.init(log_to_driver=True, logging_level=logging.WARNING)
    try:
        cpus = float(ray.cluster_resources().get("CPU", 0.0))
        logger.info("connected to Ray at %s: %.0f CPUs", os.environ["RAY_ADDRESS"], cpus)
        yield Session(False, cpus, "", temp_folder(Path(".sightline")))
    finally:
        if not already:
            ray.shutdown()


@contextmanager
def _started(options: SessionOptions) -> Iterator[Session]:
    folder = temp_folder(options.home)
    folder.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(8)
    with _environment(session_environment(secrets.token_hex(32), mark)):
        import ray

        _read_environment_again()
        cpus = logical_cpus(options.num_cpus)
        try:
            context = ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=options.dashboard,
                dashboard_port=free_port() if options.dashboard else None,
                object_store_memory=object_store_bytes(),
                logging_level=logging.WARNING,
                _temp_dir=str(folder),
            )
            url = f"http://{context.dashboard_url}" if options.dashboard else ""
            yield Session(True, float(cpus), url, folder)
        finally:
            ray.shutdown()
            end_marked(mark)
    _read_environment_again()


def _read_environment_again() -> None:
    """Make this process see the authentication variables, which Ray reads once, when it is
    imported.

    Ray does the same for itself when it turns authentication on by default
    (`ray._private.authentication.authentication_token_setup`, 2.60).
    """
    from ray import _raylet

    _raylet.Config.initialize("")  # type: ignore[attr-defined]
    _raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def object_store_bytes() -> int:
    """Return the size of Ray's shared memory: a fifth of what is free, since blocks of images are
    small here.
    """
    return min(OBJECT_STORE_LIMIT, int(psutil.virtual_memory().available * OBJECT_STORE_SHARE))


def free_port() -> int:
    """Return a TCP port that nothing listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def end_marked(mark: str) -> int:
    """End every other process that carries the mark of a session; return how many there were."""
    found = [process for process in psutil.process_iter() if _carries(process, mark)]
    # By force: nothing here has state worth saving, and Ray's processes answer a request to end
    # with a stack trace.
    for process in found:
        # it ended by itself meanwhile, which is what was wanted
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(found, timeout=SECONDS_TO_END)
    return len(found)


def _carries(process: psutil.Process, mark: str) -> bool:
    if process.pid == os.getpid():
        return False
    try:
        return bool(process.environ().get(MARK) == mark)
    except psutil.Error:
        return False


# --- a Ray that outlives the command -----------------------------------------------------------


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
    environment = {**os.environ, **session_environment(token, mark)}
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head"),
        *("--port", str(port), "--num-cpus", str(logical_cpus()), "--temp-dir", str(folder)),
        *("--object-store-memory", str(object_store_bytes())),
        *("--include-dashboard", "true", "--dashboard-port", str(dashboard_port)),
        "--disable-usage-stats",
    ]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        end_marked(mark)
        print(f"Ray did not start:\n{result.stdout}{result.stderr}", file=sys.stderr)
        return 1
    state = {
        "mark": mark,
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard_port}",
        "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{dashboard_port}",
        "RAY_AUTH_MODE": environment["RAY_AUTH_MODE"],
        "RAY_AUTH_TOKEN": environment["RAY_AUTH_TOKEN"],
    }
    _write_state(home, state)
    print(_exports(state))
    return 0


def down(home: Path) -> int:
    """End the Ray that `up` started, and nothing else."""
    state = _read_state(home)
    ended = end_marked(state["mark"]) if state is not None else 0
    (home / STATE_FILE).unlink(missing_ok=True)
    print(f"ended {ended} processes" if ended else "no Sightline Ray is running")
    return 0


def _exports(state: Mapping[str, str]) -> str:
    return "\n".join(
        f"export {name}={shlex.quote(value)}" for name, value in state.items() if name != "mark"
    )


def _is_alive(mark: str) -> bool:
    return any(_carries(process, mark) for process in psutil.process_iter())


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


def main() -> int:
    """Run `up`, `env` or `down` from the command line."""
    parser = argparse.ArgumentParser(prog="python -m cluster.session", description=__doc__)
    parser.add_argument("action", choices=("up", "env", "down"))
    parser.add_argument("--home", type=Path, default=Path(".sightline"))
    parser.add_argument("--dashboard-port", type=int, default=8265)
    arguments = parser.parse_args()
    if arguments.action == "up":
        return up(arguments.home, arguments.dashboard_port)
    if arguments.action == "down":
        return down(arguments.home)
    state = _read_state(arguments.home)
    if state is None or not _is_alive(state["mark"]):
        print(
            "no Sightline Ray is running; start one: python -m cluster.session up", file=sys.stderr
        )
        return 1
    print(_exports(state))
    return 0


if __name__ == "__main__":
    sys.exit(main())
