"""Connect to a running Ray, or start one here that leaves nothing behind.

`RAY_ADDRESS` (set inside a submitted job, or by you) means "connect"; without it, or where only a
Ray of its own will do, a local one is started and stopped with the context. `python -m
cluster.session up`, `env` and `down` do the same for a Ray that outlives the command.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.environment import (
    free_port,
    logical_cpus,
    object_store_bytes,
    session_environment,
    temp_folder,
)
from cluster.processes import end_marked
from cluster.standing import ADDRESSES, FORGET, down, env, up

logger = logging.getLogger(__name__)

ENDING = (signal.SIGTERM, signal.SIGHUP)

CONNECT_SECONDS = 5.0


class NoRayError(ConnectionError):
    """`RAY_ADDRESS` names a Ray that does not answer."""


@dataclass(frozen=True)
class SessionOptions:
    """How to reach or start Ray. `home` is the project's own folder for state."""

    home: Path = Path(".sightline")
    num_cpus: int | None = None  # logical; by default the cores, and at least 4
    dashboard: bool = False  # needed for `serve deploy` and `ray job submit`
    connect: bool = True  # to the Ray at `RAY_ADDRESS`, where that is set


@dataclass(frozen=True)
class Session:
    """A Ray to work with. `dashboard_url` is empty when there is no dashboard."""

    is_local: bool
    num_cpus: float
    dashboard_url: str
    folder: Path


@contextmanager
def open_session(options: SessionOptions | None = None) -> Iterator[Session]:
    """Connect to the Ray at `RAY_ADDRESS`, or run a local one for the length of the context.

    Raises `NoRayError` if nothing answers there.
    """
    options = options or SessionOptions()
    address = os.environ.get("RAY_ADDRESS")
    if options.connect and address:
        check_answering(address)
        with _connected(address) as session:
            yield session
        return
    with _started(options) as session:
        yield session


def check_answering(address: str) -> None:
    """Raise `NoRayError` if nothing answers at `host:port`; Ray itself tries for minutes and then
    ends the process. Other forms of address are left to Ray.
    """
    host, _, port = address.rpartition(":")
    if "/" in host or not port.isdigit():
        return
    host = host.removeprefix("[").removesuffix("]")  # of IPv6, which sockets take without them
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise NoRayError(
            f"RAY_ADDRESS is {address}, but no Ray answers there ({error}). Start it again, or "
            f"forget it to work with a local one: {FORGET}"
        ) from error


@contextmanager
def _connected(address: str) -> Iterator[Session]:
    import ray

    already = ray.is_initialized()
    if not already:
        ray.init(log_to_driver=True, logging_level=logging.WARNING)
    try:
        cpus = float(ray.cluster_resources().get("CPU", 0.0))
        logger.info("connected to Ray at %s: %.0f CPUs", address, cpus)
        url = os.environ.get("RAY_DASHBOARD_ADDRESS", "")
        yield Session(False, cpus, url, temp_folder(Path(".sightline")))
    finally:
        if not already:
            ray.shutdown()


@contextmanager
def _started(options: SessionOptions) -> Iterator[Session]:
    folder = temp_folder(options.home)
    folder.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(8)
    without = dict.fromkeys(ADDRESSES)
    with _environment(without), _environment(session_environment(secrets.token_hex(32), mark)):
        import ray

        _read_environment_again()
        cpus = logical_cpus(options.num_cpus)
        node = ""
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
            node = ray.get_runtime_context().get_node_id()
            with _ending_in_order():
                yield Session(True, float(cpus), url, folder)
        finally:
            try:
                ray.shutdown()
            finally:  # a second Ctrl-C
                end_marked(mark)
                _remove_haproxys_files(node)
    _read_environment_again()


def _remove_haproxys_files(node: str) -> None:
    """Remove what Serve (Ray 2.60) leaves of the HAProxy of a node that is gone: its configuration,
    sockets and logs, in a folder of its own for each node that there ever was.
    """
    place = os.environ.get("RAY_SERVE_HAPROXY_CONFIG_FILE_LOC")
    parent = Path(place).parent if place else Path(tempfile.gettempdir(), "haproxy-serve")
    if node:
        shutil.rmtree(parent / node, ignore_errors=True)


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """Let SIGTERM, and SIGHUP of a terminal that is closed, end this process as Ctrl-C does,
    through every `finally`: Ray's own handler of the one, set when it starts, aborts the process,
    and so does the system's of the other.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python gives signals to the main thread only
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    for number, handler in before.items():
        if handler != signal.SIG_IGN or number == signal.SIGTERM:  # as under nohup
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
def _environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables, or remove those that are None, for the length of the context."""
    before = {name: os.environ.get(name) for name in variables}
    _set_variables(variables)
    try:
        yield
    finally:
        _set_variables(before)


def _set_variables(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def main() -> int:
    """Run `up`, `env` or `down` from the command line."""
    parser = argparse.ArgumentParser(prog="python -m cluster.session", description=__doc__)
    parser.add_argument("action", choices=("up", "env", "down"))
    parser.add_argument("--home", type=Path, default=Path(".sightline"))
    parser.add_argument("--dashboard-port", type=int, default=8265)
    arguments = parser.parse_args()
    if arguments.action == "up":
        return up(arguments.home, arguments.dashboard_port)
    return {"env": env, "down": down}[arguments.action](arguments.home)


if __name__ == "__main__":
    sys.exit(main())
