"""One scoring run from beginning to end: what is where, what is done already, what is left to do,
and the output.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from jobs.console import Advance, bar
from jobs.data.locate import choose_threads
from jobs.lease import acquire
from jobs.score.client import Client
from jobs.score.columns import Columns, Scores
from jobs.score.endpoint import Endpoint, check_url, open_endpoint
from jobs.score.exchange import Exchange, Key
from jobs.score.items import Source, open_source
from jobs.score.output import check_output, output_exists, write_output
from jobs.score.parts import Done, Parts, check_journal, read_journal, remove, write_journal
from jobs.score.patience import Patience
from jobs.score.stream import Stream
from jobs.score.tally import Tally
from models.errors import ConfigError, DataError, SightlineError
from models.storage import Store, is_remote, normalise_uri, open_store, split_uri


@dataclass(frozen=True)
class Options:
    """What a run is told."""

    source: str
    url: str
    output: str
    key: Key | None = None
    concurrency: int = 4
    batch: int = 16
    readers: int | None = None
    scores: Scores = "top"
    top_k: int = 3
    min_revision: int | None = None
    embeddings: bool = False
    truth: bool = False
    path_column: str = "path"
    label_column: str = "label"
    patience: float = 60.0
    timeout: float = 60.0
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    output: str
    tally: Tally
    num_before: int  # rows of earlier runs
    num_retries: int
    seconds: float  # of scoring, without writing the output


class AlreadyFinished(Exception):
    """The output of a resumed run is there already."""


def run_scoring(options: Options, console: Console) -> Outcome:
    """Score the source and write the output.

    Raises `AlreadyFinished` when a resumed run was finished before, and `SightlineError` for
    whatever else ends it; what is scored by then is kept.
    """
    check_url(options.url)
    output = check_output(options.output, has_embedding=options.embeddings)
    work = work_store(output)
    _refuse_existing(options, output, read_journal(work))
    source = open_source(
        options.source,
        path_column=options.path_column,
        label_column=options.label_column if options.truth else None,
    )
    patience = Patience(options.patience)
    with ExitStack() as stack:
        exchange = Exchange(
            options.key, patience, timeout=options.timeout, connections=options.concurrency
        )
        stack.callback(exchange.close)
        endpoint = open_endpoint(options.url, exchange)
        columns = _columns(options, endpoint)
        check_output(options.output, has_embedding=bool(columns.embedding_width))
        client = Client(
            endpoint, exchange, calls=_calls(columns), query=_query(options, endpoint, columns)
        )
        parts = stack.enter_context(_opened(work, options, output, source, endpoint, columns))
        tally = Tally()
        done, earlier = parts.load()
        for table in earlier:
            tally.add(table)
        started = time.monotonic()
        stream = Stream(
            client,
            endpoint,
            patience,
            readers=options.readers or choose_threads(source.uri),
            concurrency=options.concurrency,
            batch=options.batch,
        )
        _score(source, stream, parts, done, tally, console)
        seconds = time.monotonic() - started
        if not tally.num_images:
            remove(work)
            raise DataError(f"{source.uri} holds no image")
        parts.check_lease()
        write_output(output, parts.tables(), columns, list(tally.score_labels), work.uri)
        remove(work)
    return Outcome(output, tally, len(done), patience.num_retries, seconds)


def work_store(output: str) -> Store:
    """Return the folder of the unfinished run of an output."""
    folder, name = split_uri(output)
    return open_store(folder).child(f".{name}.parts")


def _score(
    source: Source, stream: Stream, parts: Parts, done: Done, tally: Tally, console: Console
) -> None:
    """Score what is not done yet."""
    left = (item for item in source.items() if not done or item.key not in done)
    try:
        with stream, bar(console, "scoring", None) as advance:
            advance(len(done))
            _count_aside(source, advance)
            for answers in stream.answers(left):
                tally.add(parts.add(answers))
                advance(len(answers))
    finally:
        # Also of a run that fails: what is scored is scored.
        tally.add(parts.flush())


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
    endpoint: Endpoint,
    columns: Columns,
) -> Iterator[Parts]:
    """Hold the right to write the output, in a folder that says what is being done."""
    journal = {
        "source": source.uri,
        "fingerprint": source.fingerprint,
        "model": endpoint.model,
        "columns": vars(columns),
        "overwrite": options.overwrite,
    }
    lease = acquire(_made(work), "--output")
    try:
        before = read_journal(work)
        _refuse_existing(options, output, before)
        if options.overwrite:
            remove(work)
        elif before is not None:
            check_journal(work, before, journal)
        write_journal(work, journal)
        yield Parts(work, columns, lease)
    finally:
        is_empty = read_journal(work) is None  # nothing of this run is left to go on with
        lease.release(forget=is_empty)
        if is_empty:
            _remove_folder(work)


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


def _columns(options: Options, endpoint: Endpoint) -> Columns:
    has_label = "classify" in endpoint.calls
    wants_embedding = options.embeddings or not has_label
    if wants_embedding and not endpoint.embedding_width:
        raise ConfigError(f"{endpoint.url} has no embeddings")
    if options.min_revision is not None and not endpoint.has_label_map:
        raise ConfigError(
            f"--min-revision: the labels of {endpoint.model}, a model of kind {endpoint.kind}, do "
            "not change"
        )
    if options.truth and not has_label:
        raise ConfigError(
            f"--truth: {endpoint.model} is of kind {endpoint.kind} and answers with no label"
        )
    return Columns(
        has_truth=options.truth,
        has_label=has_label,
        scores=options.scores,
        top_k=min(options.top_k, endpoint.num_classes),
        embedding_width=endpoint.embedding_width if wants_embedding else 0,
    )


def _calls(columns: Columns) -> Sequence[str]:
    wanted = (("classify", columns.has_label), ("embed", columns.embedding_width > 0))
    return [call for call, is_wanted in wanted if is_wanted]


def _query(options: Options, endpoint: Endpoint, columns: Columns) -> dict[str, str]:
    query: dict[str, str] = {"scores": columns.scores}
    if columns.scores == "top":
        query["top_k"] = str(max(1, columns.top_k))
    if options.min_revision is not None:
        query["min_revision"] = str(options.min_revision)
    return query


def _made(work: Store) -> Store:
    """Make the folder, on a disk; in a bucket there is none to make."""
    if not is_remote(work.uri):
        try:
            Path(work.uri, "parts").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot write to {work.uri}: {error.strerror}") from error
    return work


def _remove_folder(work: Store) -> None:
    if not is_remote(work.uri):
        for folder in (Path(work.uri, "parts"), Path(normalise_uri(work.uri))):
            try:
                folder.rmdir()
            except OSError:  # gone already, or another run has begun in it
                return
