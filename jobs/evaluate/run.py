"""A whole evaluation: list and read the images, ask the bundle, and beside it another one, and put
together what there is to say.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.markup import escape

from cluster.environment import data_cpus, usable_cores
from jobs.console import bar
from jobs.data.index import Index
from jobs.data.quarantine import Broken
from jobs.data.split import SPLITS
from jobs.data.streams import IndexedImages, StreamOptions
from jobs.data.tables import read_index
from jobs.evaluate.assess import Seen, assess, beside
from jobs.evaluate.config import EvaluateJob
from jobs.evaluate.judged import Judged
from jobs.evaluate.match import LabelMatcher
from jobs.evaluate.output import predictions, write_report
from jobs.evaluate.outputs import Outputs, collect
from jobs.evaluate.report import Report
from jobs.score.bundled import Running, read_labels
from models.bundle import Bundle, open_bundle
from models.engines.base import ENGINES, EngineOptions
from models.errors import ConfigError, DataError
from models.kinds import find_kind
from models.label_map import Reading
from models.storage import Store, split_uri

Device = Literal["cpu", "cuda"]
ALL = "all"
JUDGED = "test"  # what the chosen images are called in the index that is streamed


@dataclass(frozen=True)
class Subject:
    """A bundle, and the labels that its answers are read with, from a label store if there is one.

    `marks` tell it from another one of the same name and version.
    """

    bundle: Bundle
    reading: Reading
    labels: str | None = None
    marks: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Its name and version, and what else it is told apart by."""
        name = self.bundle.manifest.label
        return f"{name} ({', '.join(self.marks)})" if self.marks else name


def open_subject(uri: str, labels: str | None) -> Subject:
    """Open a bundle, and the label map of its kind where a store is given.

    Raises `ConfigError` for a kind without classes, and the errors of opening both.
    """
    bundle = open_bundle(uri)
    kind = find_kind(bundle.manifest.kind)
    if not kind.has_classes:
        raise ConfigError(
            f"{bundle.manifest.label} is of kind {kind.name}, which has no classes to judge"
        )
    reading, _ = read_labels(bundle, Running(uri, labels=labels), None)
    return Subject(bundle, reading, labels)


def told_apart(one: Subject, other: Subject) -> tuple[Subject, Subject]:
    """Return two subjects with different labels: where name and version are the same, with the
    store and the label revision, as far as those differ. One model with itself stays as it is.
    """
    if one.label != other.label:
        return one, other
    facts = [
        (_store(one.bundle.uri), _store(other.bundle.uri)),
        (_labels(one.reading), _labels(other.reading)),
        (f"labels of {one.labels}", f"labels of {other.labels}"),
    ]
    marks = [pair for pair in facts[:2] if pair[0] != pair[1]]
    marks = marks or [pair for pair in facts[2:] if pair[0] != pair[1]]
    mine, theirs = tuple(pair[0] for pair in marks), tuple(pair[1] for pair in marks)
    return replace(one, marks=mine), replace(other, marks=theirs)


def _store(bundle: str) -> str:
    return split_uri(split_uri(bundle)[0])[0]


def _labels(reading: Reading) -> str:
    return f"label revision {reading.revision}" if reading.revision else "its own labels"


@dataclass
class Evaluation:
    """An evaluation under way."""

    job: EvaluateJob
    subject: Subject
    console: Console
    split: str | None = None  # None: test where the source has splits, else all images
    options: EngineOptions | None = None  # None: those of a server without a GPU
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, store: Store, other: Subject | None = None) -> tuple[Report, dict[str, str]]:
        """Make the evaluation and write it. Needs a running Ray. Returns the URI of each file, too.

        Raises `DataError` for labels that the model does not know, and where no image is left.
        """
        matcher = LabelMatcher(
            self.subject.label,
            self.subject.reading,
            split=self.split,
            hint=_hint(self.subject.bundle),
        )
        with self._timed("index"):
            index = self._read(matcher)
            split = self._choose(index, matcher)
        chosen = choose_images(index, split, self.job.data.uri)
        to_other = None if other is None else self._truths(matcher, other)
        with self._timed("ask"):
            outputs, broken = self._ask(self.subject, chosen, index)
        pair: tuple[Outputs, Outputs] | None = None
        if other is not None:
            with self._timed("ask the other"):
                theirs, _ = self._ask(other, chosen, index)
            outputs, theirs = on_both(outputs, theirs)
            pair = (outputs, theirs)
        rows = chosen.table.take(pa.array(outputs.rows))
        seen = Seen(rows, self.job.data, split, broken, tuple(self.notes))
        report = assess(
            self.subject.bundle,
            self.subject.reading,
            outputs,
            seen,
            self.job.evaluate,
            self.options,
        )
        judged_other = None
        if pair is not None and other is not None and to_other is not None:
            judged_other = Judged.by_reading(
                pair[1].probabilities, to_other[pair[0].truth], other.reading
            )
            paths = rows["path"].to_pylist()
            report = beside(
                report,
                judged_other,
                other.label,
                paths,
                self.job.evaluate,
                name=self.subject.label,
            )
        report = replace(report, seconds={**self.seconds, **report.seconds})
        written = write_report(
            store,
            self.subject.bundle.manifest,
            report,
            predictions(report.judged, rows, judged_other),
            self.job.evaluate.page_rows,
        )
        return report, written

    def _read(self, matcher: LabelMatcher) -> Index:
        index = read_index(
            self.job.data,
            self.subject.bundle.manifest.preprocess,
            self.console,
            cpu_limit=data_cpus(),
            matcher=matcher,
        )
        self.notes += [*index.warnings, *matcher.notes]
        for note in matcher.notes:
            self.console.print(f"[yellow]note:[/] {escape(note)}", highlight=False)
        return index

    def _choose(self, index: Index, matcher: LabelMatcher) -> str:
        """Return the split to judge, and take note of what its choice means."""
        split = self.split or (JUDGED if matcher.has_splits else ALL)
        if self.split is None and split == ALL:
            self.notes.append(
                "the source has no splits, so all of its images are judged; if the model was "
                "trained on some of them, its figures flatter: --split test, with the data "
                "settings of the training, judges those that it was not trained on"
            )
        if split == "train":
            self.notes.append("a model was trained on its train split: its figures flatter")
        if find_kind(self.subject.bundle.manifest.kind).has_label_map and not (
            self.subject.reading.revision
        ):
            self.notes.append(
                f"{self.subject.label} is of kind dynamic: it is judged with its own classes; "
                "--labels <label store> judges it with the labels it serves"
            )
        return split

    def _ask(
        self, subject: Subject, chosen: Index, whole: Index
    ) -> tuple[Outputs, tuple[Broken, ...]]:
        images = IndexedImages(
            chosen,
            subject.bundle.manifest.preprocess,
            StreamOptions.from_config(self.job.data, data_cpus()),
        )
        with bar(self.console, escape(f"asking {subject.label}"), chosen.num_images()) as advance:
            outputs = collect(subject.bundle, images, JUDGED, advance, self.options)
        return outputs, (*whole.quarantine, *images.broken)

    def _truths(self, matcher: LabelMatcher, other: Subject) -> npt.NDArray[np.int64]:
        """Return the other model's label for each of ours, (L,).

        Raises `DataError` where it has none for one, or two.
        """
        theirs = LabelMatcher(other.label, other.reading, hint=_hint(other.bundle))
        found = np.full(len(matcher.names), -1, np.int64)
        for number, sources in matcher.sources.items():
            places = set(theirs.numbers(sorted(sources), self.job.data.uri).tolist())
            if len(places) > 1:
                raise DataError(
                    f"{', '.join(map(repr, sorted(sources)))} are one label of "
                    f"{self.subject.label} and {len(places)} of {other.label}: give both the same "
                    "labels, with --labels and --against-labels"
                )
            found[number] = places.pop()
        return found

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - started


def choose_images(index: Index, split: str, uri: str) -> Index:
    """Return an index of the images of a split alone, or of all. Raises `DataError` where there is
    none.
    """
    table = index.table
    if split != ALL:
        table = table.filter(pc.equal(table["split"], split))
    if not table.num_rows:
        counts: Mapping[str, int] = {name: index.num_images(name) for name in SPLITS}
        there = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        raise DataError(f"{uri} has no image in the split {split!r}; it has {there}")
    place = table.column_names.index("split")
    marked = table.set_column(
        place, table.schema.field(place), pa.array([JUDGED] * table.num_rows, pa.string())
    )
    return replace(index, table=marked.combine_chunks())


def on_both(one: Outputs, other: Outputs) -> tuple[Outputs, Outputs]:
    """Return the outputs of two models on the images that both could read."""
    _, mine, theirs = np.intersect1d(one.rows, other.rows, return_indices=True)
    return one.at(mine), other.at(theirs)


def engine_options(device: Device) -> EngineOptions:
    """Return what an engine is opened with on the processor or the GPU of this machine, as a server
    would.
    """
    engines = EngineOptions().engines
    if device == "cuda":
        engines = tuple(name for name in ENGINES if name != "openvino")
    return EngineOptions(engines=engines, device=device, threads=usable_cores())


def _hint(bundle: Bundle) -> str:
    if not find_kind(bundle.manifest.kind).has_label_map:
        return ""
    return "; labels that a label map has renamed are known with --labels <label store>"


def evaluate_set(
    job: EvaluateJob,
    subject: Subject,
    store: Store,
    console: Console,
    *,
    split: str | None = None,
    other: Subject | None = None,
    device: Device = "cpu",
) -> tuple[Report, dict[str, str]]:
    """Judge a bundle on a source and write what was found to `store`. Needs a running Ray."""
    return Evaluation(job, subject, console, split, engine_options(device)).run(store, other)
