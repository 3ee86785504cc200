"""The replicas of one Serve application, told and counted together through Serve's broadcast."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serve_app.asking import Asking
from serve_app.directory import Directory, num_running
from serve_app.logs import OURS
from serve_app.model import ServedModel
from serve_app.peers import Alone, Confirmed
from serve_app.statistics import Counters

logger = logging.getLogger(OURS)

REFRESH_SECONDS = 2.0  # for replicas to take up a revision before the writer is answered
COUNT_SECONDS = 2.0


class ServePeers:
    """All replicas of an application, this one among them."""

    def __init__(self, application: str, model: ServedModel) -> None:
        self._model = model
        self._alone = Alone(model)
        self._asking = Asking()
        self._all = Replicas(application, self._asking)
        self._directory = Directory(self._asking)

    async def refresh_labels(self, revision: int) -> Confirmed:
        """Let all look into the log. One that is not reached finds the revision by itself."""
        found = await self._all.call("refresh_labels", REFRESH_SECONDS)
        if not found:  # one of them hangs, or Serve does; this replica is here, and knows of itself
            own, running = await asyncio.gather(self._refresh_own(revision), self._num_running())
            return Confirmed(max(own.asked, running), own.confirmed)
        return Confirmed(len(found), sum(head is not None and head >= revision for head in found))

    async def _refresh_own(self, revision: int) -> Confirmed:
        try:
            return await asyncio.wait_for(self._alone.refresh_labels(revision), REFRESH_SECONDS)
        except TimeoutError:  # the store hangs; the revision is stored, and is found later
            return Confirmed(1, 0)

    async def _num_running(self) -> int:
        """Return how many replicas run, 0 where that is not known."""
        asked = self._asking.answer(num_running, self._all.application)
        try:
            return await asyncio.wait_for(asked, COUNT_SECONDS)
        except (TimeoutError, RayServeException, RayError) as error:
            logger.warning("how many replicas run is not known: %r", error)
            return 0

    async def statistics(self) -> Sequence[Counters]:
        """Return the counters of each replica that answers."""
        found = await self._all.call("statistics", COUNT_SECONDS)
        counted = [counters for counters in found if counters is not None]
        return counted or await self._alone.statistics()

    async def versions(self) -> Sequence[int]:
        """Return the versions of this model that are ready, its own among them."""
        manifest = self._model.manifest
        found = {manifest.version}
        try:
            entries = await self._directory.entries()
        # the list is an extra: metadata is answered without it
        except Exception as error:
            logger.warning("the other versions of %s are not known: %s", manifest.name, error)
            entries = ()
        found |= {
            int(entry.version)
            for entry in entries
            if entry.name == manifest.name and entry.state == "READY" and entry.version
        }
        return sorted(found)


class Replicas:
    """The replicas of an application, called all at once."""

    def __init__(self, application: str, asking: Asking) -> None:
        self.application = application
        self._asking = asking
        self._handle: DeploymentHandle[Any] | None = None

    async def call(self, method: str, seconds: float) -> list[Any]:
        """Call a method of all replicas that run, and return what they answer: None for one that
        fails, nothing at all where not all answer in time.
        """
        try:
            async with asyncio.timeout(seconds):
                handle = self._handle
                if handle is None:
                    asked = self._asking.answer(serve.get_app_handle, self.application)
                    handle = self._handle = await asked
                response = handle.broadcast(method)
                results = await response.results_async(return_exceptions=True)
        except (TimeoutError, RayServeException, RayError) as error:
            logger.warning("%s of application %r: no answer: %r", method, self.application, error)
            return []
        return [None if isinstance(each, BaseException) else each for each in results]
