"""Connecting to a Ray that is not there."""

from __future__ import annotations

import time

import pytest

from cluster.environment import free_port
from cluster.session import NoRayError, check_answering, open_session


def test_a_ray_that_has_ended_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    started = time.monotonic()
    with pytest.raises(NoRayError, match="unset RAY_ADDRESS") as raised, open_session():
        pass
    assert address in str(raised.value)
    assert time.monotonic() - started < 6, "Ray itself takes minutes"


@pytest.mark.parametrize("address", ["auto", "ray://head:10001", "local"])
def test_other_forms_of_address_are_left_to_ray(address: str) -> None:
    check_answering(address)
