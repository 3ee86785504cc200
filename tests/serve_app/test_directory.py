"""What the list of models says of one that has no replica."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

import serve_app.directory
from serve_app.directory import DEPLOYMENT, Directory
from tests.clock import Clock


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


class Replica(asyncio.Future[dict[str, str]]):
    """A handle to a replica that holds a version, and what it answers; without one it fails."""

    def __init__(self, version: str) -> None:
        super().__init__()
        if version:
            self.set_result({"name": "caps", "version": version})
        else:
            self.set_exception(TimeoutError())

    @property
    def describe(self) -> Replica:
        """Stand in for the method of the handle."""
        return self

    def remote(self) -> Awaitable[dict[str, str]]:
        """Answer."""
        return self


class Asking:
    """Finds the replica that is asked."""

    def __init__(self) -> None:
        self.version = ""
        self.num_asked = 0

    async def answer(self, ask: object, application: str) -> Replica:
        """Return it."""
        self.num_asked += 1
        return Replica(self.version)


def test_what_an_old_replica_says_is_not_kept_for_the_new_deployment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A deployment has its time seconds before its replicas: who asked meanwhile was told version 7
    until the next one, where 8 ran.
    """
    clock = Clock()
    monkeypatch.setattr(serve_app.directory, "time", clock)

    async def run() -> None:
        asking = Asking()
        directory = Directory(asking)  # type: ignore[arg-type]

        async def told(status: str) -> str:
            known = details(status, 1, "/v2/models/caps")
            known["deployments"][DEPLOYMENT]["replicas"] = [{"state": "RUNNING"}]
            return (await directory._entry("app", known)).version

        asking.version = "7"
        assert await told("DEPLOYING") == "7"
        asking.version = "8"
        assert await told("DEPLOYING") == "8"
        assert await told("RUNNING") == "8"
        assert asking.num_asked == 3
        asking.version = "9"
        assert await told("RUNNING") == "8"  # kept for a while
        assert asking.num_asked == 3
        clock.now += 10
        assert await told("RUNNING") == "9"
        clock.now += 10
        asking.version = ""  # it is too busy to answer
        assert await told("RUNNING") == "9"

    asyncio.run(run())
