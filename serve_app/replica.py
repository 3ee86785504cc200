"""One replica of one model: it opens the bundle, proves an engine with it, then answers HTTP.

HAProxy hands requests straight to the replica, so there is one hop and no handle between
deployments. The HTTP application is built in the replica, because it needs the opened model. `app`
makes a Serve deployment of this class.
"""

from __future__ import annotations

import asyncio
import logging
import time

from serve_app.asgi import build_asgi
from serve_app.config import ServeOptions
from serve_app.model import open_served
from serve_app.routing import Api

DEPLOYMENT = "model"  # the name in Serve of every deployment that serves a model

logger = logging.getLogger("ray.serve")


class Replica:
    """One replica of one model. Ready only after its engine has passed the bundle's proof."""

    # Serve awaits it
    async def __init__(self, options: ServeOptions) -> None:  # type: ignore[misc]
        started = time.perf_counter()
        # In a thread: Serve asks a starting replica how it is on this event loop.
        self._model = await asyncio.to_thread(open_served, options)
        predictor = self._model.predictor
        logger.info(
            "%s is ready on %s %s (%s, %s) after %.2f s; proof: %s",
            self._model.manifest.label,
            predictor.engine.name,
            predictor.engine.precision,
            predictor.engine.device,
            predictor.engine.feeding,
            time.perf_counter() - started,
            predictor.proof,
        )
        for refusal in predictor.refusals:
            logger.warning("%s: refused %s", self._model.manifest.label, refusal)

    def __serve_build_asgi_app__(self) -> Api:
        """Return the HTTP application; Serve asks for it once, after the constructor."""
        return build_asgi(self._model)

    async def check_health(self) -> None:
        """Raise when the engine does not reproduce its proof any more; Serve then replaces us."""
        await self._model.check()

    async def describe(self) -> dict[str, str]:
        """Return the name and version of the model, for the catalog."""
        manifest = self._model.manifest
        return {"name": manifest.name, "version": str(manifest.version)}

    def __del__(self) -> None:
        # The constructor may have failed before there was a model.
        if hasattr(self, "_model"):
            self._model.close()
