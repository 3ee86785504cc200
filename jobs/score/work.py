"""The folder of an unfinished run: hidden beside the output, on its disk or in its bucket.

It holds `run.json`, the journal, which says what is being scored and how; the rows scored so far
(`jobs.score.parts`); a lease; and on a disk the output while it is written. Nothing of it stays
when the output is there, whenever a run is killed.
"""

from __future__ import annotations

import json
import logging
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from jobs.lease import Lease, acquire
from models.errors import AlreadyExistsError, ConfigError, SightlineError
from models.storage import Store, is_remote, open_store, split_uri

logger = logging.getLogger(__name__)

JOURNAL = "run.json"
WRITTEN, CHOICE = "written", "choice"  # in the journal
PARTS = "parts"
SCRATCH = "output-"  # folders in which outputs are begun


def work_store(output: str) -> Store:
    """Return the folder of the unfinished run of an output."""
    folder, name = split_uri(output)
    return open_store(folder).child(f".{name}.parts")


def take(work: Store) -> Lease:
    """Make the folder, and take the right to write the output. Raises `ConfigError` where another
    run has it, or nothing can be written there.
    """
    if not is_remote(work.uri):  # in a bucket there is none to make
        try:
            Path(work.uri, PARTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot write to {work.uri}: {error.strerror}") from error
    lease = acquire(work, "--output")
    _sweep(work)
    return lease


def let_go(work: Store, lease: Lease) -> None:
    """Release the folder, and remove it where nothing is left in it to go on with."""
    is_empty = not has_journal(work)
    lease.release(forget=is_empty)
    if is_empty and not is_remote(work.uri):
        for folder in (Path(work.uri, PARTS), Path(work.uri)):
            try:
                folder.rmdir()
            except OSError:  # gone already, or another run has begun in it
                return


def write_journal(work: Store, journal: dict[str, Any]) -> None:
    """Say what this folder is the beginning of."""
    with suppress(AlreadyExistsError):
        work.create(JOURNAL, _dump(journal))


def note(work: Store, **facts: Any) -> None:
    """Add to the journal: `WRITTEN` when all is scored and the output about to appear, so that only
    this folder has still to be removed if it is there; `CHOICE` for a run that goes on.
    """
    before = read_journal(work) or {}
    if any(before.get(name) != fact for name, fact in facts.items()):
        work.write(JOURNAL, _dump({**before, **facts}))


def has_journal(work: Store) -> bool:
    """Say whether there is an unfinished run."""
    return (is_remote(work.uri) or Path(work.uri).is_dir()) and work.exists(JOURNAL)


def read_journal(work: Store) -> dict[str, Any] | None:
    """Return what an unfinished run says of itself, or None where there is none. Raises
    `ConfigError` where it cannot be read.
    """
    if not has_journal(work):
        return None
    try:
        value: dict[str, Any] = json.loads(work.read(JOURNAL))
    except ValueError as error:
        raise ConfigError(
            f"{work.uri}/{JOURNAL} is not readable ({error}); begin anew with --overwrite"
        ) from error
    return value


def check_journal(work: Store, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise `ConfigError` when a resumed run would not do the same as before."""
    differing = [
        f"{name} was {before.get(name)!r} and is {now[name]!r}"
        for name in now
        if name != "overwrite" and before.get(name) != now[name]
    ]
    if differing:
        raise ConfigError(
            f"the unfinished run in {work.uri} cannot go on, because {'; '.join(differing)}; "
            "give the same as before, or begin anew with --overwrite"
        )


def clear_left_over(work: Store) -> None:
    """Remove what a run left beside a finished output that was killed before it had done so."""
    if not _is_left_over(work):
        return
    try:
        lease = take(work)
    except SightlineError as error:  # it may live, and then removes it itself
        logger.warning("%s is left over and cannot be removed now: %s", work.uri, error)
        return
    if _is_left_over(work):  # still: nobody else can begin there now
        remove(work)
    let_go(work, lease)


def remove(work: Store) -> None:
    """Remove an unfinished run, its lease excepted."""
    for entry in list(work.list(PARTS)):
        work.delete(entry.key)
    work.delete(JOURNAL)
    _sweep(work)


def _is_left_over(work: Store) -> bool:
    journal = read_journal(work)
    if journal is None:  # it goes last but for the lease
        return any(work.list_children()) if is_remote(work.uri) else Path(work.uri).is_dir()
    # A run that replaces an output is resumed instead: whose output is there is not known.
    return bool(journal.get(WRITTEN)) and not journal.get("overwrite")


def _sweep(work: Store) -> None:
    """Remove what killed processes left on a disk and no listing shows: outputs that were begun,
    and files of the storage library, such as `run.json#1`. Needs the lease.
    """
    if is_remote(work.uri):
        return
    for path in Path(work.uri).glob(f"{SCRATCH}*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in (*Path(work.uri).glob(f"{JOURNAL}#*"), *Path(work.uri, PARTS).glob("*#*")):
        path.unlink(missing_ok=True)


def _dump(journal: dict[str, Any]) -> bytes:
    # As ASCII: a path may hold bytes that are no Unicode.
    return json.dumps(journal, indent=1).encode()
