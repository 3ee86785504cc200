"""Connecting to a Ray that is not there."""

from __future__ import annotations

import time
import urllib.request

import pytest

from cluster.environment import free_port, session_environment
from cluster.session import NoRayError, check_answering, open_session


def test_a_ray_that_has_ended_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    started = time.monotonic()
    with pytest.raises(NoRayError, match="unset RAY_ADDRESS") as raised, open_session():
        pass
    assert address in str(raised.value)
    assert time.monotonic() - started < 6, "Ray itself takes minutes"


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


@pytest.mark.parametrize("address", ["auto", "ray://head:10001", "local"])
def test_other_forms_of_address_are_left_to_ray(address: str) -> None:
    check_answering(address)
