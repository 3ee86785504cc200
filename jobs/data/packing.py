"""Pack a set: examine it, write its images into shards in a mixed order, read everything back.

Each step notes what it has done below `DEST/.pack`, so that a run that was killed goes on where it
was and ends with the same bytes. `pack.json` is written last: without it nothing is a packed set.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from jobs.data import shards
from jobs.data.config import DataConfig
from jobs.data.pack_plan import PLAN, PackOptions, Plan, load_plan, make_plan, note_plan
from jobs.data.pack_shards import Record, read_record, verify_shards, write_shards
from jobs.data.quarantine import Broken, check_share
from jobs.data.tables import print_broken
from jobs.lease import Lease, acquire
from models.errors import ConfigError, DataError, StorageError
from models.storage import Store, is_remote, normalise_uri, open_store, read_uri

# What only says how fast a source is read, or how much of it may be broken.
NOT_PACKED = {
    *("images_per_task", "read_threads", "prefetch_batches", "shuffle", "cache_gib"),
    "max_broken_share",
}
CLEARING = "clearing"  # noted while what was there before is removed


@dataclass(frozen=True)
class Packed:
    """What a run came to. `about` is the content of `pack.json`."""

    uri: str
    about: dict[str, Any]
    digest: str  # of `pack.json`, which holds those of all files
    num_before: int = 0  # shards that an earlier run had written
    is_finished_before: bool = False  # nothing was left to do

    @property
    def num_images(self) -> int:
        """Return how many images were packed."""
        return int(self.about["num_images"])


def run_packing(config: DataConfig, options: PackOptions, console: Console) -> Packed:
    """Pack the source; go on with what an earlier run with the same settings left. Needs Ray.

    Raises `ConfigError` where the destination is taken, and the errors of reading and writing. What
    `overwrite` replaces is removed only when the source was read.
    """
    store = open_store(options.uri)
    _refuse_inside(config, store)
    fingerprint = fingerprint_of(config, options)
    with _held(store) as lease:
        store = store.patient()  # it has answered
        work = store.child(shards.WORK)
        finished = _look(store, fingerprint, options)
        if finished is not None:
            _clear_work(work)  # of a run that was killed before it did so
            return finished
        is_noted = work.exists(PLAN) and not work.exists(CLEARING)
        plan = load_plan(work) if is_noted else None
        if plan is not None and plan.fits(fingerprint, options):
            console.print(f"going on with the packing of {plan.source}", highlight=False)
        else:
            plan = make_plan(config, options, fingerprint, console)
            lease.check()
            _clear(store)
            note_plan(work, plan)
        num_before = write_shards(config, options, store, plan, lease, console)
        records = [read_record(store, number) for number in range(plan.num_shards)]
        broken = [*plan.broken, *(one for record in records for one in record.broken)]
        _check_share(config, work, plan, records, broken)
        index = verify_shards(store, plan, records, lease, console)
        lease.check()
        about, digest = _commit(store, plan, records, broken, index)
    if broken:
        print_broken(broken, f"{store.uri}/{shards.QUARANTINE}", console)
    return Packed(store.uri, about, digest, num_before)


def fingerprint_of(config: DataConfig, options: PackOptions) -> str:
    """Return a digest of all that decides what is packed, and how, but the images themselves."""
    # Without what is as it always is: else a new setting would be another set.
    settings = config.model_dump(mode="json", exclude=NOT_PACKED, exclude_defaults=True)
    settings["uri"] = normalise_uri(config.uri)
    tables = [config.uri] if config.source == "manifest" else []
    tables += [config.leave_out] if config.leave_out is not None else []
    contents = [hashlib.sha256(read_uri(uri)).hexdigest() for uri in tables]
    packing = [options.max_side, options.shard_bytes, options.seed]
    text = json.dumps([settings, contents, packing], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_share(
    config: DataConfig,
    work: Store,
    plan: Plan,
    records: Sequence[Record],
    broken: Sequence[Broken],
) -> None:
    """Raise `DataError` where too much is broken; what could not be read is then tried again by the
    next run, when it was repaired.
    """
    try:
        total = plan.rows.num_rows + len(plan.broken)
        check_share(broken, total, config.max_broken_share, config.uri, plan.num_lost)
    except DataError:
        for record in records:
            if record.broken:
                work.delete(f"{record.name}.json")
        raise


def _refuse_inside(config: DataConfig, store: Store) -> None:
    source, dest = _real(normalise_uri(config.uri)), _real(store.uri)
    if f"{dest}/".startswith(f"{source}/"):
        raise ConfigError(
            f"the destination {store.uri} lies in the source {config.uri}, which would then hold "
            "other files than before; give a folder beside it"
        )


def _real(uri: str) -> str:
    """Return one spelling of a place: without links, and with one name for S3."""
    if is_remote(uri):
        return uri.replace("s3a://", "s3://", 1)
    return os.path.realpath(uri)


@contextmanager
def _held(store: Store) -> Iterator[Lease]:
    """Hold the right to write the destination."""
    work = store.child(shards.WORK)
    if not is_remote(store.uri):
        try:
            Path(work.uri).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot write to {store.uri}: {error.strerror}") from error
    lease = acquire(work, "DEST")
    try:
        yield lease
    finally:
        is_done = False
        with suppress(StorageError):  # which is not to hide why the run ends
            is_done = not work.exists(PLAN)
        lease.release(forget=is_done)
        if not is_remote(work.uri):
            with suppress(OSError):  # there are notes, or another run has begun in it
                Path(work.uri).rmdir()


def _look(store: Store, fingerprint: str, options: PackOptions) -> Packed | None:
    """Return what a finished run left, where it is the same and not to be replaced.

    Raises `ConfigError` where something else is in the destination: nothing of others is removed.
    """
    work = store.child(shards.WORK)
    folders, files = store.list_children()
    names = [entry.key for entry in files]
    has_set, has_plan = shards.COMMIT in names, work.exists(PLAN)
    has_ours = has_set or has_plan or work.exists(CLEARING)
    foreign = [name for name in folders if name != shards.WORK]
    foreign += [name for name in names if not (_is_ours(name) and has_ours)]
    if foreign:
        raise ConfigError(
            f"{store.uri} is not empty: it holds {foreign[0]!r}"
            f"{f' and {len(foreign) - 1:,} other entries' if len(foreign) > 1 else ''}; give an "
            "empty or new folder"
        )
    if options.overwrite or (work.exists(CLEARING) and not has_set):
        return None
    if has_set:
        data = store.read(shards.COMMIT)
        about = shards.load_commit(data, store.uri)
        if about.get("fingerprint") == fingerprint:
            digest = hashlib.sha256(data).hexdigest()
            return Packed(store.uri, about, digest, len(about["shards"]), is_finished_before=True)
        raise ConfigError(
            f"{store.uri} holds a packed set already, of {about.get('source')!r} or with other "
            "settings; give another DEST, or --overwrite"
        )
    if has_plan and json.loads(work.read(PLAN))["fingerprint"] != fingerprint:
        raise ConfigError(
            f"{store.uri} holds an unfinished packing of another source or with other settings; "
            "finish it with those, or begin anew with --overwrite"
        )
    return None


def _is_ours(name: str) -> bool:
    others = (shards.COMMIT, shards.INDEX, shards.QUARANTINE)
    return name in others or re.fullmatch(r"part-\d{5,}\.parquet", name) is not None


def _clear(store: Store) -> None:
    """Remove a set, its commit first: what is left of it is then no packed set. A run that is
    killed meanwhile leaves a note, so that the next one knows it for its own.
    """
    work = store.child(shards.WORK)
    names = [entry.key for entry in store.list_children()[1] if _is_ours(entry.key)]
    if names:
        work.write(CLEARING, b"")
    for name in sorted(names, key=lambda name: name != shards.COMMIT):
        store.delete(name)
    _clear_work(work)


def _clear_work(work: Store) -> None:
    """Remove all notes but the lease, the plan first, and last the one that this goes on."""
    names = [entry.key for entry in work.list_children()[1] if not entry.key.startswith("lock-")]
    for name in sorted(names, key=lambda name: (name == CLEARING, name != PLAN)):
        work.delete(name)


def _commit(
    store: Store,
    plan: Plan,
    records: Sequence[Record],
    broken: Sequence[Broken],
    index: pa.Table,
) -> tuple[dict[str, Any], str]:
    """Write the index, the quarantine and, last, `pack.json`; return it and its digest."""
    data = shards.dump_index(index)
    store.write(shards.INDEX, data)
    lines = [json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in broken]
    store.write(shards.QUARANTINE, "".join(lines).encode())
    about = {
        "fingerprint": plan.fingerprint,
        "source": plan.source,
        "num_images": len(index),
        "num_quarantined": len(broken),
        "counts": _counts(index),
    }
    written = [
        {
            "name": record.name,
            "rows": record.rows,
            "bytes": record.num_bytes,
            "sha256": record.sha256,
        }
        for record in records
        if record.rows
    ]
    commit = shards.dump_commit(about, classes=plan.classes, index=data, shards=written)
    store.write(shards.COMMIT, commit)
    _clear_work(store.child(shards.WORK))
    return shards.load_commit(commit, store.uri), hashlib.sha256(commit).hexdigest()


def _counts(index: pa.Table) -> dict[str, dict[str, int]]:
    """Return the images per class and split."""
    counted = index.group_by(["label", "split"]).aggregate([([], "count_all")])
    counts: dict[str, dict[str, int]] = {}
    for row in counted.sort_by([("label", "ascending"), ("split", "ascending")]).to_pylist():
        counts.setdefault(row["label"], {})[row["split"]] = row["count_all"]
    return counts
