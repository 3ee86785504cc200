"""What the list of models says of one that has no replica."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serve_app.directory import DEPLOYMENT, Directory


def details(status: str, target: int, route: str | None) -> dict[str, Any]:
    """Return what Serve says of an application without a replica."""
    deployment = {"status": "HEALTHY", "message": "", "replicas": [], "target_num_replicas": target}
    return {
        "status": status,
        "message": "",
        "route_prefix": route,
        "last_deployed_time_s": 7.0,
        "deployments": {DEPLOYMENT: deployment},
    }


@pytest.mark.parametrize(
    ("route", "name", "version"),
    [
        ("/v2/models/caps", "caps", ""),
        ("/v2/models/caps/versions/3", "caps", "3"),
        (None, "app", ""),
    ],
)
def test_a_model_that_sleeps_is_ready_under_its_own_name(
    route: str | None, name: str, version: str
) -> None:
    entry = asyncio.run(Directory()._entry("app", details("RUNNING", 0, route)))
    assert (entry.state, entry.name, entry.version, entry.reason) == ("READY", name, version, "")


def test_a_model_whose_replicas_are_missing_is_not() -> None:
    entry = asyncio.run(Directory()._entry("app", details("RUNNING", 2, "/v2/models/caps")))
    assert entry.state == "UNAVAILABLE"
    entry = asyncio.run(Directory()._entry("app", details("DEPLOYING", 0, "/v2/models/caps")))
    assert entry.state == "LOADING"
