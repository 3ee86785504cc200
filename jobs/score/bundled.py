"""Scoring without a server: a bundle, the labels it is read with, and workers on Ray."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from cluster.environment import data_cpus
from cluster.session import SessionOptions, open_session
from jobs.data.locate import choose_threads
from jobs.interrupt import ended_by_sigterm
from jobs.score.columns import Columns
from jobs.score.items import Source
from jobs.score.ways import Model, Scorer
from jobs.score.work import CHOICE
from models.bundle import Bundle, open_bundle
from models.engines.base import ENGINES, EngineOptions
from models.errors import ConfigError, LabelMapError, NotFoundError
from models.kinds import find_kind
from models.label_log import LabelLog, open_log
from models.label_map import Reading, first_reading
from models.manifest import dump_manifest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Running:
    """What a bundle is run with."""

    bundle: str
    labels: str | None = None  # label store
    min_revision: int | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    workers: int | None = None
    threads: int | None = None
    readers: int | None = None


class Bundled:
    """A bundle that was opened, with labels as they were when the run began."""

    def __init__(self, running: Running, before: Mapping[str, Any] | None) -> None:
        """`before` is what an unfinished run says of itself: it goes on with the same labels, and
        in the same precision.

        Raises `BundleError`, `LabelMapError`, `StorageError` and `ConfigError`.
        """
        self._running = running
        self._choice = (before or {}).get(CHOICE)
        self._bundle = open_bundle(running.bundle)
        self._reading, self._revision = read_labels(self._bundle, running, before)
        manifest, kind = self._bundle.manifest, find_kind(self._bundle.manifest.kind)
        self.model = Model(
            name=manifest.name,
            kind=kind.name,
            has_labels=kind.has_classes,
            has_label_map=kind.has_label_map,
            num_classes=len(manifest.classes),
            embedding_width=manifest.outputs.embedding,
            listed=tuple(
                label.name for label in self._reading.label_map.labels if label.status == "active"
            ),
        )

    @property
    def identity(self) -> Mapping[str, Any]:
        """The bundle, wherever it lies, and the labels."""
        manifest = self._bundle.manifest
        digest = hashlib.sha256(dump_manifest(manifest)).hexdigest()[:16]
        return {"bundle": f"{manifest.label} {digest}", "label_revision": self._revision}

    @contextmanager
    def start(self, source: Source, columns: Columns) -> Iterator[Scorer]:
        """Connect to Ray, or start one here, and wait for the first worker."""
        with open_session(SessionOptions()), ended_by_sigterm():
            from jobs.score.crew import Crew, choose_size, list_nodes
            from jobs.score.worker import Job

            running = self._running
            size = choose_size(
                list_nodes(),
                num_cpus=data_cpus(),
                threads=running.threads,
                workers=running.workers,
                has_gpus=running.device == "cuda",
            )
            job = Job(
                bundle=self._bundle.uri,
                engine=EngineOptions(
                    engines=_engines(running.device),
                    device=running.device,
                    threads=size.num_threads,
                ),
                columns=columns,
                reading=self._reading,
                label_revision=self._revision,
                num_readers=running.readers or choose_threads(source.uri),
            )
            with Crew(job, size, self._choice and tuple(self._choice)) as crew:
                crew.open()
                yield crew


def _engines(device: str) -> tuple[str, ...]:
    """Return the engines to try, in order."""
    if device == "cpu":
        return EngineOptions().engines
    return tuple(name for name in ENGINES if name != "openvino")


def read_labels(
    bundle: Bundle, running: Running, before: Mapping[str, Any] | None
) -> tuple[Reading, int | None]:
    """Return how probabilities are read, and the revision that rows name, if there are any.

    Raises `ConfigError` for labels of a kind that has none, and what reading them raises.
    """
    manifest = bundle.manifest
    if not find_kind(manifest.kind).has_label_map:
        if running.labels is not None:
            raise ConfigError(
                f"--labels: {manifest.label} is of kind {manifest.kind}, whose labels do not change"
            )
        return first_reading(manifest.classes), None
    if running.labels is None:
        if running.min_revision:
            raise ConfigError("--min-revision needs --labels, the store with the revisions")
        return first_reading(manifest.classes), 0
    log = open_log(running.labels, manifest.name, manifest.classes)
    pinned = (before or {}).get("label_revision")
    reading = _in_effect(log) if pinned is None else _reading(log, int(pinned))
    if reading.revision < (running.min_revision or 0):
        since = "" if pinned is None else "; the unfinished run began with it: --overwrite it"
        raise LabelMapError(
            f"label revision {running.min_revision} is not in effect, {reading.revision} is{since}"
        )
    return reading, reading.revision


def _in_effect(log: LabelLog) -> Reading:
    """Return the newest revision whose time has come, as a replica that starts now."""
    head = log.head()
    if not head:
        logger.warning("%s holds no revision: the model's own classes count", log.store.uri)
    for number in range(head, 0, -1):
        try:
            revision = log.read(number)
        except (LabelMapError, NotFoundError) as error:
            logger.warning("a label revision is passed by: %s", error)
            continue
        if revision.effective_at is None or revision.effective_at <= datetime.now(UTC):
            return Reading(revision.map, log.classes, number)
    return first_reading(log.classes)


def _reading(log: LabelLog, number: int) -> Reading:
    return Reading(log.read(number).map, log.classes, number)
