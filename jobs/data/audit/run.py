"""A whole audit: list, measure, judge, ask a model, and write what was found.

It never dies of what it should report: a set that training refuses is a finding like any other.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from rich.console import Console

from cluster.environment import data_cpus
from jobs.console import bar
from jobs.data.audit import copies, counts, names, suspects, traits
from jobs.data.audit.config import AuditJob
from jobs.data.audit.embed import NoModelError, choose_rows, embed, open_embedder
from jobs.data.audit.findings import Finding, in_order
from jobs.data.audit.lookalikes import Limits, LookAlikes, find_look_alikes
from jobs.data.audit.measure import measure
from jobs.data.audit.output import write_report
from jobs.data.audit.page import render_page, shown_pictures
from jobs.data.audit.pictures import draw_pictures
from jobs.data.audit.report import Report
from jobs.data.audit.subject import Subject, make_subject
from jobs.data.labels import drop_labels, find_wrong_rules
from jobs.data.sources import Listing, list_source
from models.bundle import open_bundle
from models.errors import BundleError, DataError, EngineError
from models.storage import Store


def audit_set(
    job: AuditJob, bundle: str | None, store: Store, console: Console
) -> tuple[Report, dict[str, str]]:
    """Audit a set and write what was found to `store`. Needs a running Ray.

    Returns the report, and the URI of each file. Raises `StorageError` and `ConfigError`, but
    nothing about what is wrong with the set.
    """
    audit = Audit(job, console)
    report = audit.run(bundle)
    pictures: dict[int, str] = {}
    if audit.subject is not None:
        shown = shown_pictures(report.findings, job.audit)
        pixels = job.audit.picture_pixels
        pictures = draw_pictures(audit.subject, shown, job.data, job.preprocess, pixels)
    return report, write_report(store, report, render_page(report, pictures, job.audit))


@dataclass
class Audit:
    """An audit under way: what was found so far."""

    job: AuditJob
    console: Console
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    subject: Subject | None = None
    model: str = ""
    model_accuracy: float | None = None

    def run(self, bundle: str | None = None) -> Report:
        """Make the audit. Needs a running Ray."""
        synonyms = names.load_synonyms(self.job.audit.synonyms)
        if bundle is not None:
            open_bundle(bundle)  # what is not there shows now, and not when the images are read
        try:
            with self._timed("list"):
                listing = list_source(self.job.data, cpu_limit=data_cpus())
        except DataError as error:
            self.findings.append(Finding("unlisted", str(error)))
            return self._report()
        self._note_listing(listing)
        table = drop_labels(listing.table, self.job.data, is_strict=False).sort_by("path")
        if not len(table):
            self.findings.append(Finding("one_class", "no image is left after data.drop"))
            return self._report()
        with self._timed("measure"):
            subject = self.subject = self._measure(table, carves=listing.classes is None)
        num_unlisted = len(listing.broken) + listing.num_lost
        with self._timed("judge"):
            self.findings += names.check_names(subject.names, synonyms)
            self.findings += names.check_orientation(subject.names, self.job.augment)
            self.findings += counts.check_counts(subject, self.job.audit, listing.empty)
            self.findings += counts.check_classes(subject, self.job.data)
            self.findings += counts.check_broken(subject, self.job.data, num_unlisted)
            self.findings += counts.check_groups(subject)
            self.findings += traits.check_traits(subject, self.job.audit)
            look_alikes = self._compare(subject)
        with self._timed("model"):
            self._ask_model(subject, look_alikes, bundle)
        return self._report()

    def _note_listing(self, listing: Listing) -> None:
        self.notes += listing.warnings
        if listing.ignored:
            self.notes.append(f"{listing.ignored:,} files are not images by their names: ignored")
        labels = listing.table["label"].unique().to_pylist()
        self.findings += [
            Finding("unknown_rule", wrong) for wrong in find_wrong_rules(self.job.data, labels)
        ]
        self.findings += [
            Finding("broken", one.reason, path=one.path, score=0.0) for one in listing.broken
        ]

    def _measure(self, table: pa.Table, *, carves: bool) -> Subject:
        with bar(self.console, "reading images", len(table)) as advance:
            done = 0

            def progress(count: int, total: int) -> None:
                nonlocal done
                advance(count - done, total)
                done = count

            measures = measure(table, self.job.data, self.job.preprocess, progress, data_cpus())
        return make_subject(table, measures, self.job.data, self.job.audit.mark, carves=carves)

    def _compare(self, subject: Subject) -> LookAlikes:
        config = self.job.audit
        limits = Limits(
            relative=config.near_duplicate,
            absolute=config.near_duplicate_absolute,
            crowd_images=config.crowd_images,
            crowd_share=config.crowd_share,
        )
        is_first = subject.contents == np.arange(len(subject))
        found = find_look_alikes(subject.measures.fingerprints, limits, is_first)
        self.findings += copies.check_copies(subject)
        self.findings += copies.check_look_alikes(subject, found)
        return found

    def _ask_model(self, subject: Subject, look_alikes: LookAlikes, bundle: str | None) -> None:
        config = self.job.audit
        if suspects.FINDINGS.issubset(config.skip):
            return
        if len({int(code) for code in subject.codes[subject.usable]}) < 2:
            return  # one class: there is nothing to mistake it for
        rows = choose_rows(subject, config.model_images)
        if len(rows) < len(subject.usable):
            self.notes.append(
                f"the model was asked about {len(rows):,} of {len(subject.usable):,} images, drawn "
                "by lot: audit.model_images"
            )
        try:
            with open_embedder(bundle, self.job) as embedder:
                with bar(self.console, "asking the model", len(rows)) as advance:
                    rows, vectors = embed(subject, rows, embedder, self.job, advance)
                self.model = embedder.name
        except (NoModelError, DataError, BundleError, EngineError) as error:
            self.findings.append(Finding("model_skipped", str(error)))
            return
        groups = copies.group_by_likeness(subject, look_alikes)[rows]
        doubts = suspects.ask_model(subject, rows, vectors, groups, config)
        if doubts is None:
            self.findings.append(
                Finding(
                    "model_skipped",
                    f"fewer than two classes have {config.folds} unlike images: nothing to learn",
                )
            )
            return
        self.model_accuracy = doubts.accuracy
        if doubts.left_out:
            self.notes.append(
                f"too few images to judge the labels of: {', '.join(map(repr, doubts.left_out))}"
            )
        self.findings += suspects.check_labels(subject, doubts, config)

    def _report(self) -> Report:
        skipped = set(self.job.audit.skip)
        findings: Iterable[Finding] = self.findings
        if self.subject is not None:
            findings = copies.spare_shared_files(self.subject, findings)
        return Report(
            uri=self.job.data.uri,
            created=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            num_images=0 if self.subject is None else len(self.subject),
            counts={} if self.subject is None else self.subject.counts(),
            findings=in_order(one for one in findings if one.kind not in skipped),
            notes=tuple(self.notes),
            model=self.model,
            model_accuracy=self.model_accuracy,
            settings={
                "data": self.job.data.model_dump(mode="json"),
                "audit": self.job.audit.model_dump(mode="json"),
            },
            seconds=self.seconds,
        )

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - started
