"""Connecting to a Ray that is not there."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from cluster.environment import free_port, session_environment
from cluster.session import (
    NoRayError,
    _remove_haproxys_files,
    check_answering,
    open_session,
)
from cluster.standing import STATE_FILE, down, up

ROOT = Path(__file__).parents[2]


def test_a_ray_that_has_ended_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    started = time.monotonic()
    with pytest.raises(NoRayError, match="unset RAY_ADDRESS") as raised, open_session():
        pass
    assert address in str(raised.value)
    assert time.monotonic() - started < 6, "Ray itself takes minutes"


IN_A_SESSION = """
import os, signal, sys, time
from cluster.session import _ending_in_order
signal.signal(int(sys.argv[1]), signal.SIG_DFL)  # under nohup it is ignored
with _ending_in_order():
    try:
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(5)
    finally:
        print("cleaned")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_end_of_a_job_or_a_terminal_goes_through_every_finally(number: int) -> None:
    """A terminal that was closed once left Ray's processes behind."""
    command = [sys.executable, "-c", IN_A_SESSION, str(int(number))]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (ended.returncode, ended.stdout) == (128 + number, "cleaned\n")


def test_requests_to_this_machine_go_past_the_proxies_of_a_company(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("no_proxy", "store.factory")
    told = session_environment("token", "mark")
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("http_proxy", "http://proxy.factory:3128")
    for host in ("localhost:8000", "127.0.0.1:8265", "store.factory"):
        assert urllib.request.proxy_bypass(host)
    assert not urllib.request.proxy_bypass("elsewhere")


def test_the_brackets_of_an_ipv6_address_are_no_part_of_its_host() -> None:
    try:
        listening = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    with listening:
        address = f"[::1]:{listening.getsockname()[1]}"
        check_answering(address)
    with pytest.raises(NoRayError, match="refused"):
        check_answering(address)


@pytest.mark.parametrize("address", ["auto", "ray://head:10001", "local"])
def test_other_forms_of_address_are_left_to_ray(address: str) -> None:
    check_answering(address)


def test_what_serve_leaves_of_haproxy_goes_with_its_node_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_SERVE_HAPROXY_CONFIG_FILE_LOC", f"{tmp_path}/haproxy.cfg")
    for node in ("mine", "another"):
        (tmp_path / node).mkdir()
        (tmp_path / node / "haproxy.cfg").touch()
    _remove_haproxys_files("")
    _remove_haproxys_files("mine")
    assert [path.name for path in tmp_path.iterdir()] == ["another"]


ROOM_FOR_NOTHING = """
import ray
from jobs.room import await_room
ray.init(log_to_driver=False)
await_room([{"CPU": 1000.0}], 600, "Lower it.")
"""


@pytest.mark.slow  # a Ray of its own
def test_a_ray_that_outlives_its_command_is_known_to_get_no_nodes(tmp_path: Path) -> None:
    try:
        assert up(tmp_path, free_port()) == 0
        state = json.loads((tmp_path / STATE_FILE).read_text())
        reached = {name: value for name, value in state.items() if name != "mark"}
        asked = subprocess.run(
            [sys.executable, "-c", ROOM_FOR_NOTHING],
            cwd=ROOT,
            env={**os.environ, **reached},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        down(tmp_path)
    assert "ConfigError: there is no room for 1 x 1000 CPU" in asked.stderr, asked.stderr[-2000:]
