"""One replica of one model: it opens the bundle, proves an engine with it, then answers HTTP and
gRPC.

HAProxy hands requests straight to the replica, so there is one hop and no handle between
deployments. The HTTP application is built in the replica, because it needs the opened model. `app`
makes a Serve deployment of this class.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial

from ray import serve

from models.errors import ConfigError
from models.stopwatch import Stopwatch, measuring, part
from serve_app import IMPORTED_SINCE
from serve_app.access_log import AccessLog, beside, to_stderr
from serve_app.asgi import build_asgi
from serve_app.config import ServeOptions
from serve_app.directory import check_route
from serve_app.keys import open_keys
from serve_app.logs import OURS, SERVE, begin_logging
from serve_app.metrics import Exporter, figures_of
from serve_app.model import ServedModel, open_served
from serve_app.oip.grpc_calls import GrpcCalls
from serve_app.ray_metrics import RaySink
from serve_app.routing import Api
from serve_app.serve_peers import ServePeers
from serve_app.statistics import Counters
from serve_app.waiting import open_patiently

logger = logging.getLogger(OURS)

IMPORT_SECONDS = time.perf_counter() - IMPORTED_SINCE


class Replica(GrpcCalls):
    """One replica of one model. Ready only after its engine has passed the bundle's proof."""

    # Serve awaits it
    async def __init__(self, options: ServeOptions) -> None:  # type: ignore[misc]
        begin_logging()
        application = serve.get_replica_context().app_name
        with measuring() as watch:
            self._keys = open_keys(options.keys_file)
            # In a thread: Serve asks a starting replica how it is on this event loop.
            self._model = await asyncio.to_thread(_open, options, application)
            self._peers = ServePeers(application, self._model)
            self._exporter = self._begin_watching(options)
            with part("http"):
                self._http = build_asgi(self._model, self._keys, self._peers)
        self._model.start = start_seconds(watch)
        self._tell_ready()

    def __serve_build_asgi_app__(self) -> Api:
        """Return the HTTP application; Serve asks for it once, after the constructor."""
        return self._http

    def is_leaving(self) -> bool:
        """Say whether Serve has asked this replica to end when it has answered what it has."""
        return self._http.is_leaving()

    async def check_health(self) -> None:
        """Raise when the engine does not reproduce its proof any more; Serve then replaces us."""
        await self._model.check()

    async def describe(self) -> dict[str, str]:
        """Return the name and version of the model, for the catalog."""
        manifest = self._model.manifest
        return {"name": manifest.name, "version": str(manifest.version)}

    async def refresh_labels(self) -> int:
        """Look for new label revisions; returns the newest. Serve broadcasts it after a write."""
        return await self._model.labels.refreshed()

    async def statistics(self) -> Counters:
        """Return what this replica has done so far."""
        return self._model.statistics.counters()

    def _tell_ready(self) -> None:
        predictor = self._model.predictor
        parts = dict(self._model.start)
        logger.info(
            "%s is ready on %s %s (%s, %s) after %.2f s (%s); proof: %s",
            self._model.manifest.label,
            predictor.engine.name,
            predictor.engine.precision,
            predictor.engine.device,
            predictor.engine.feeding,
            parts.pop("total"),
            ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items()),
            predictor.proof,
        )
        for refusal in predictor.refusals:
            logger.warning("%s: refused %s", self._model.manifest.label, refusal)
        for handler in logging.getLogger(SERVE).handlers:
            handler.flush()  # else Serve keeps the lines until there are a thousand

    def _begin_watching(self, options: ServeOptions) -> Exporter | None:
        """Let requests be logged and counted; return what hands the counts to Ray."""
        context, serve_logger = serve.get_replica_context(), logging.getLogger(SERVE)
        watch = self._model.watch
        watch.is_echoed = True  # by Serve, over HTTP
        if options.access_log != "off":
            name = f"access_{context.app_name}_{context.replica_tag}.log"
            write = beside(serve_logger, name) if options.access_log == "file" else to_stderr
            about = {**self._model.facts, "replica": context.replica_tag}
            watch.access_log = AccessLog(write, options.access_log_sample, about)
        return Exporter(partial(figures_of, self._model), RaySink()) if options.metrics else None

    def __del__(self) -> None:
        # The constructor may have failed before there was a model.
        exporter: Exporter | None = getattr(self, "_exporter", None)
        if exporter is not None:
            exporter.close()
        if hasattr(self, "_model"):
            self._model.close()


def start_seconds(watch: Stopwatch) -> dict[str, float]:
    """Return the seconds of each part of a start and in total, from the first import of ours; what
    Serve does between imports and constructor is not in it.
    """
    parts = dict(watch.seconds)
    parts["imports"] = parts.get("imports", 0.0) + IMPORT_SECONDS
    total = watch.total + IMPORT_SECONDS
    parts |= {"other": total - sum(parts.values()), "total": total}
    return {name: round(seconds, 4) for name, seconds in parts.items()}


def _open(options: ServeOptions, application: str) -> ServedModel:
    model = open_patiently(lambda: open_served(options), options.start_patience_seconds)
    try:
        check_route(application, model.manifest)
    except ConfigError:
        model.close()
        raise
    return model
