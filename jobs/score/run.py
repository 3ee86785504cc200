"""One scoring run from beginning to end: what is where, what is done already, what is left to do,
and the output.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from jobs.console import Advance, bar
from jobs.score.bundled import Bundled, Running
from jobs.score.columns import Columns, Scores
from jobs.score.endpoint import check_url
from jobs.score.items import Item, Source, open_source
from jobs.score.ordering import Order
from jobs.score.output import check_output, output_exists, write_output
from jobs.score.parts import Done, Parts
from jobs.score.served import Asking, Served
from jobs.score.tally import Tally
from jobs.score.ways import Model, Scorer, Way
from jobs.score.work import (
    CHOICE,
    WRITTEN,
    check_journal,
    clear_left_over,
    let_go,
    note,
    read_journal,
    remove,
    take,
    work_store,
    write_journal,
)
from models.errors import ConfigError, DataError, SightlineError
from models.storage import Store

TOP_K = 3


@dataclass(frozen=True)
class Options:
    """What a run is told; `how` says with what it scores."""

    source: str
    output: str
    how: Asking | Running
    scores: Scores = "top"
    top_k: int | None = None
    embeddings: bool = False
    truth: bool = False
    path_column: str = "path"
    label_column: str = "label"
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    output: str
    tally: Tally
    num_before: int  # rows of earlier runs
    told: str  # who scored
    num_retries: int
    seconds: float  # of scoring, without starting workers and writing the output


class AlreadyFinished(Exception):
    """The output of a resumed run is there already."""


def run_scoring(options: Options, console: Console) -> Outcome:
    """Score the source and write the output.

    Raises `AlreadyFinished` when a resumed run was finished before, and `SightlineError` for
    whatever else ends it; what is scored by then is kept.
    """
    _check(options)
    output = check_output(options.output, has_embedding=options.embeddings)
    work = work_store(output)
    if not options.overwrite and output_exists(output):
        clear_left_over(work)
    before = None if options.overwrite else read_journal(work)
    work = work.patient()  # it has answered
    _refuse_existing(options, output, before)
    source = open_source(
        options.source,
        path_column=options.path_column,
        label_column=options.label_column if options.truth else None,
    )
    with ExitStack() as stack:
        way = _open_way(options, before, stack)
        columns = _columns(options, way.model)
        check_output(options.output, has_embedding=bool(columns.embedding_width))
        parts = stack.enter_context(_opened(work, options, output, source, way, columns))
        tally = Tally()
        done, earlier = parts.load()
        for table in earlier:
            tally.add(table)
        order = Order(len(done))
        left = _left(source, done, order)
        started = _started(way, source, columns, work, is_begun=len(done) > 0)
        work_done = _score(source, started, left, parts, len(done), tally, console)
        if not tally.num_images:
            remove(work)
            raise DataError(f"{source.uri} holds no image")
        parts.check_lease()
        note(work, **{WRITTEN: True})
        labels = [*way.model.listed] or [*tally.score_labels]
        write_output(output, parts.tables(order), columns, labels, work.uri)
        remove(work)
    return Outcome(output, tally, len(done), *work_done)


def _check(options: Options) -> None:
    """Raise `ConfigError` for options that make no sense together."""
    if options.top_k is not None and options.scores != "top":
        raise ConfigError(
            f"--top-k says how many labels --scores top lists, but --scores {options.scores} lists "
            f"{'all of them' if options.scores == 'all' else 'none'}: give one of the two"
        )
    if isinstance(options.how, Asking):
        check_url(options.how.url)


def _open_way(options: Options, before: dict[str, Any] | None, stack: ExitStack) -> Way:
    if isinstance(options.how, Asking):
        return Served(options.how, stack)
    return Bundled(options.how, before)


def _left(source: Source, done: Done, order: Order) -> Iterator[Item]:
    """Yield what is not done yet, and note where its rows and those of earlier runs belong."""
    for item in source.items():
        row = done.find(item.key)
        if row is not None:
            order.add_earlier(row)
        else:
            order.add_own()
            yield item


def _score(
    source: Source,
    started: AbstractContextManager[Scorer],
    left: Iterator[Item],
    parts: Parts,
    num_done: int,
    tally: Tally,
    console: Console,
) -> tuple[str, int, float]:
    """Score what is not done yet; returns who did, how often something was tried again, and the
    seconds.
    """
    try:
        with started as scorer, bar(console, "scoring", None) as advance:
            began = time.monotonic()
            advance(num_done)
            _count_aside(source, advance)
            for rows in scorer.rows(left):
                tally.add(parts.add(rows))
                advance(len(rows))
            return scorer.told, scorer.num_retries, time.monotonic() - began
    finally:
        # Also of a run that fails: what is scored is scored.
        tally.add(parts.flush())


@contextmanager
def _started(
    way: Way, source: Source, columns: Columns, work: Store, *, is_begun: bool
) -> Iterator[Scorer]:
    """Start; where that fails and nothing was scored before, there is nothing to resume."""
    with ExitStack() as stack:
        try:
            scorer = stack.enter_context(way.start(source, columns))
        except BaseException:
            if not is_begun:
                remove(work)
            raise
        if scorer.choice is not None:
            note(work, **{CHOICE: list(scorer.choice)})
        yield scorer


def _count_aside(source: Source, advance: Advance) -> None:
    """Let the bar know the total as soon as a listing of its own has found it."""

    def count() -> None:
        try:
            total = source.count()
        except SightlineError:  # the run's own listing meets it too, and says so
            return
        advance(0, total)

    threading.Thread(target=count, name="count", daemon=True).start()


@contextmanager
def _opened(
    work: Store,
    options: Options,
    output: str,
    source: Source,
    way: Way,
    columns: Columns,
) -> Iterator[Parts]:
    """Hold the right to write the output, in a folder that says what is being done."""
    journal = {
        "source": source.uri,
        "fingerprint": source.fingerprint,
        "model": way.model.name,
        **way.identity,
        "columns": vars(columns),
        "overwrite": options.overwrite,
    }
    lease = take(work)
    try:
        before = None if options.overwrite else read_journal(work)
        _refuse_existing(options, output, before)
        if options.overwrite:
            remove(work)
        elif before is not None:
            check_journal(work, before, journal)
        write_journal(work, journal)
        yield Parts(work, columns, lease)
    finally:
        let_go(work, lease)


def _refuse_existing(options: Options, output: str, journal: dict[str, Any] | None) -> None:
    """Raise where results would be lost or mixed, or where nothing is left to do."""
    if options.resume and options.overwrite:
        raise ConfigError("--resume goes on with a run, --overwrite begins anew: give one of them")
    if options.overwrite:
        return
    is_there = output_exists(output)
    if is_there and options.resume and not (journal and journal.get("overwrite")):
        raise AlreadyFinished(output)
    if is_there and not options.resume:
        raise ConfigError(
            f"{output} exists already; give another --output, or --overwrite to replace it"
        )
    if journal is not None and not options.resume:
        raise ConfigError(
            f"an unfinished run for {output} lies in {work_store(output).uri}; give --resume to go "
            "on with it, or --overwrite to begin anew"
        )


def _columns(options: Options, model: Model) -> Columns:
    wants_embedding = options.embeddings or not model.has_labels
    if wants_embedding and not model.embedding_width:
        raise ConfigError(f"{model.name} has no embeddings")
    if options.how.min_revision is not None and not model.has_label_map:
        raise ConfigError(
            f"--min-revision: the labels of {model.name}, a model of kind {model.kind}, do not "
            "change"
        )
    if options.truth and not model.has_labels:
        raise ConfigError(
            f"--truth: {model.name} is of kind {model.kind} and answers with no label"
        )
    return Columns(
        has_truth=options.truth,
        has_label=model.has_labels,
        scores=options.scores,
        top_k=min(options.top_k or TOP_K, model.num_classes),
        embedding_width=model.embedding_width if wants_embedding else 0,
    )
